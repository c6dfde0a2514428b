package csr

import (
	"bytes"
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/kube/request"
	"hsm-signer/policy/pkcs10"
)

// A requester may make a request of a megabyte, and many of them. Of each, what a sync needs is
// kept; one that had to be truncated is read whole when it is synced, one at a time.
const (
	// mostMeta is how much of annotations, labels, and what else is in the metadata is kept, in
	// bytes.
	mostMeta = 16 << 10
	// mostName is how long the name of a request may be, in bytes, to be served. The API server
	// takes any, and names go into logs, Events, addresses and the journal.
	mostName = 1 << 10
)

// trim returns the request without what is not needed of it. It may change the object.
func (a *API) trim(csr *certificatesv1.CertificateSigningRequest) *Request {
	if len(csr.Name) > mostName {
		return a.ignoreName(csr)
	}
	r := a.Whole(csr)
	meta := trimmedMeta(csr, csr.Name)
	if !a.Kind.KeepFinished && !(r.State().Open() && a.Kind.Serves(csr.Spec.SignerName)) {
		return a.Whole(&certificatesv1.CertificateSigningRequest{
			ObjectMeta: meta,
			Spec: certificatesv1.CertificateSigningRequestSpec{
				SignerName: csr.Spec.SignerName,
			},
			Status: csr.Status,
		})
	}
	large := !request.HasRoom(r.StoredSize(), request.RoomForAnswer)
	csr.ManagedFields = nil
	if r.truncated = large || csr.ObjectMeta.Size() > mostMeta; r.truncated {
		csr.ObjectMeta = meta
	}
	// it is refused, and the API server keeps the whole of it
	if len(csr.Spec.Request) > pkcs10.MaxPEM {
		csr.Spec.Request = bytes.Clone(csr.Spec.Request[:pkcs10.MaxPEM+1])
	}
	return r
}

// trimmedMeta returns the metadata that a sync needs.
func trimmedMeta(csr *certificatesv1.CertificateSigningRequest, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: name, UID: csr.UID, ResourceVersion: csr.ResourceVersion,
		CreationTimestamp: csr.CreationTimestamp,
	}
}

// ignoreName returns what is kept of a request that is not served since its name is too long. The
// name that it is kept under ends with the UID, so no other request has it.
func (a *API) ignoreName(csr *certificatesv1.CertificateSigningRequest) *Request {
	r := a.Whole(&certificatesv1.CertificateSigningRequest{
		ObjectMeta: trimmedMeta(csr, csr.Name[:64]+"…"+string(csr.UID)),
		Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: csr.Spec.SignerName, Username: csr.Spec.Username,
		},
	})
	r.ignored = fmt.Sprintf("its name has %d bytes; the most is %d", len(csr.Name), mostName)
	return r
}
