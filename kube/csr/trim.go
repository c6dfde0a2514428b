package csr

import (
	"bytes"
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"

	"hsm-signer/kube/request"
	"hsm-signer/policy/pkcs10"
)

// mostName is how long the name of a request may be, in bytes, to be served. The API server takes
// any, and names go into logs, Events, addresses and the journal.
const mostName = 1 << 10

// trim returns the request without what a sync does not need: a requester may make many requests of
// a megabyte. One that had to be truncated is read whole when it is synced, one at a time. It may
// change the object.
func (a *API) trim(csr *certificatesv1.CertificateSigningRequest) *Request {
	if len(csr.Name) > mostName {
		return a.ignoreName(csr)
	}
	r := a.Whole(csr)
	if !a.Kind.KeepFinished && !(r.State().Open() && a.Kind.Serves(csr.Spec.SignerName)) {
		return a.Whole(&certificatesv1.CertificateSigningRequest{
			ObjectMeta: request.TrimmedMeta(csr.ObjectMeta),
			Spec: certificatesv1.CertificateSigningRequestSpec{
				SignerName: csr.Spec.SignerName,
			},
			Status: csr.Status,
		})
	}
	r.truncated = request.Trim(&csr.ObjectMeta, r.StoredSize())
	// it is refused, and the API server keeps the whole of it
	if len(csr.Spec.Request) > pkcs10.MaxPEM {
		csr.Spec.Request = bytes.Clone(csr.Spec.Request[:pkcs10.MaxPEM+1])
	}
	return r
}

// ignoreName returns what is kept of a request that is not served since its name is too long. The
// name that it is kept under ends with the UID, so no other request has it.
func (a *API) ignoreName(csr *certificatesv1.CertificateSigningRequest) *Request {
	meta := request.TrimmedMeta(csr.ObjectMeta)
	meta.Name = csr.Name[:64] + "…" + string(csr.UID)
	r := a.Whole(&certificatesv1.CertificateSigningRequest{
		ObjectMeta: meta,
		Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: csr.Spec.SignerName, Username: csr.Spec.Username,
		},
	})
	r.ignored = fmt.Sprintf("its name has %d bytes; the most is %d", len(csr.Name), mostName)
	return r
}
