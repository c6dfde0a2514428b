package kube

import (
	"bytes"
	"context"

	certificatesv1 "k8s.io/api/certificates/v1"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/kube/csr"
	"hsm-signer/policy/pkcs10"
)

// A requester may make a request of a megabyte, and many of them. The store keeps of each what a
// sync needs; one that had to be truncated is read whole when it is synced, one at a time.
const (
	// mostMeta is how much of annotations, labels, and what else is in the metadata is kept, in
	// bytes.
	mostMeta = 16 << 10
	// mostName is how long the name of a request may be, in bytes, to be served. The API server
	// takes any, and names go into logs, Events, addresses and the journal.
	mostName = 1 << 10
	// noSigner is kept as the signer of a request that is not served whoever it is for; no signer's
	// name is like that.
	noSigner = "-"
	// listPage is how many requests one answer to a list holds.
	listPage = 25
)

// stored is a request as the store keeps it. It is never changed.
type stored struct {
	*certificatesv1.CertificateSigningRequest
	// truncated: it is not as the API server has it, or may be too large to be written, and must be
	// read again before it is decided or written.
	truncated bool
}

// requestIn returns the request that a store keeps or a handler is given, or nil.
func requestIn(object any) *certificatesv1.CertificateSigningRequest {
	switch o := object.(type) {
	case *stored:
		return o.CertificateSigningRequest
	case *certificatesv1.CertificateSigningRequest:
		return o
	}
	return nil
}

// trim returns the request without what is not needed of it, as [*stored]. It may be given the same
// one again.
func (c *Controller) trim(object any) (any, error) {
	csr, is := object.(*certificatesv1.CertificateSigningRequest)
	if !is { // it is trimmed, or one of client-go's notes of what it has missed
		return object, nil
	}
	if len(csr.Name) > mostName {
		return &stored{CertificateSigningRequest: c.ignoreName(csr)}, nil
	}
	meta := trimmedMeta(csr, csr.Name)
	if c.Mode != Shadow && (stateOf(csr) == done || !c.serves(csr)) {
		return &stored{CertificateSigningRequest: &certificatesv1.CertificateSigningRequest{
			ObjectMeta: meta,
			Spec:       certificatesv1.CertificateSigningRequestSpec{SignerName: csr.Spec.SignerName},
			Status:     csr.Status,
		}}, nil
	}
	large := !hasRoom(csr, roomForAnswer)
	csr.ManagedFields = nil
	truncated := large || csr.ObjectMeta.Size() > mostMeta
	if truncated {
		csr.ObjectMeta = meta
	}
	if len(csr.Spec.Request) > pkcs10.MaxPEM { // it is refused, and the API server keeps the whole of it
		csr.Spec.Request = bytes.Clone(csr.Spec.Request[:pkcs10.MaxPEM+1])
	}
	return &stored{csr, truncated}, nil
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
func (c *Controller) ignoreName(
	csr *certificatesv1.CertificateSigningRequest,
) *certificatesv1.CertificateSigningRequest {
	begin := csr.Name[:64] + "…"
	if c.ignored.add(csr.UID, csr.ResourceVersion) {
		c.Logger.Warn("the name of a request is too long, and it is left alone",
			"name", begin, "bytes", len(csr.Name), "uid", csr.UID, "signer", csr.Spec.SignerName, "requester", csr.Spec.Username)
	}
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: trimmedMeta(csr, begin+string(csr.UID)),
		Spec:       certificatesv1.CertificateSigningRequestSpec{SignerName: noSigner},
	}
}

// listTrimmed lists page by page, so that no more than one page is in memory as it came.
func (c *Controller) listTrimmed(
	ctx context.Context, api *csr.API, o metav1.ListOptions,
) (*metainternalversion.List, error) {
	// Without a version: a cache would return all at once.
	o.ResourceVersion, o.ResourceVersionMatch, o.Limit = "", "", listPage
	all := &metainternalversion.List{}
	for {
		page, err := api.List(ctx, o)
		if err != nil {
			return nil, err
		}
		for i := range page.Items {
			trimmed, _ := c.trim(&page.Items[i]) // it never fails
			all.Items = append(all.Items, trimmed.(*stored))
		}
		all.ListMeta = page.ListMeta
		if o.Continue = page.Continue; o.Continue == "" {
			return all, nil
		}
	}
}
