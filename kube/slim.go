package kube

import (
	"bytes"
	"context"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/policy/pkcs10"
)

// A requester may make a request of a megabyte, and many of them. What is kept of each is what a sync needs, and
// one that had to be cut is read whole when it is synced, one at a time.
const (
	// mostMeta is how much of annotations, labels, and what else is in the metadata is kept, in bytes.
	mostMeta = 16 << 10
	// cutMark is the annotation of a request whose metadata were cut, or which may be too large to be
	// written. Should a requester set it, its request is read once more than needed.
	cutMark = "hsm-signer/cut"
	// mostName is how long the name of a request may be, in bytes, to be served. The API server takes any, and names go into logs,
	// events, addresses and the journal.
	mostName = 1 << 10
	// noSigner is what is kept as the signer of a request that is not served whoever it is for; no signer's name is like that.
	noSigner = "-"
	// listPage is how many requests one answer to a list holds.
	listPage = 25
)

// slim returns the request without what is not needed of it. It may be given the same one again.
func (c *Controller) slim(object any) (any, error) {
	csr, is := object.(*certificatesv1.CertificateSigningRequest)
	if !is { // client-go's notes of what it has missed
		return object, nil
	}
	if len(csr.Name) > mostName {
		return c.leftAlone(csr), nil
	}
	meta := metav1.ObjectMeta{Name: csr.Name, UID: csr.UID, ResourceVersion: csr.ResourceVersion, CreationTimestamp: csr.CreationTimestamp}
	if c.Mode != Shadow && (stateOf(csr) == done || !c.serves(csr)) {
		return &certificatesv1.CertificateSigningRequest{
			ObjectMeta: meta, Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: csr.Spec.SignerName}, Status: csr.Status,
		}, nil
	}
	large := !hasRoom(csr, roomForAnswer)
	csr.ManagedFields = nil
	if large || csr.ObjectMeta.Size() > mostMeta {
		csr.ObjectMeta = meta
		csr.Annotations = map[string]string{cutMark: ""}
	}
	if len(csr.Spec.Request) > pkcs10.MaxPEM { // which is refused, and the API server keeps the whole of it
		csr.Spec.Request = bytes.Clone(csr.Spec.Request[:pkcs10.MaxPEM+1])
	}
	return csr, nil
}

// leftAlone is what is kept of a request that is not served since its name is too long. The name that it is kept under ends with the UID,
// so no other request has it.
func (c *Controller) leftAlone(csr *certificatesv1.CertificateSigningRequest) *certificatesv1.CertificateSigningRequest {
	begin := csr.Name[:64] + "…"
	if c.ignored.add(csr.UID, csr.ResourceVersion) {
		c.Logger.Warn("the name of a request is too long, and it is left alone", "name", begin, "bytes", len(csr.Name),
			"uid", csr.UID, "signer", csr.Spec.SignerName, "requester", csr.Spec.Username)
	}
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: begin + string(csr.UID), UID: csr.UID, ResourceVersion: csr.ResourceVersion, CreationTimestamp: csr.CreationTimestamp},
		Spec:       certificatesv1.CertificateSigningRequestSpec{SignerName: noSigner},
	}
}

// cut tells whether the request is not as the API server has it, so that it must be read again before it is written.
func cut(csr *certificatesv1.CertificateSigningRequest) bool {
	_, is := csr.Annotations[cutMark]
	return is
}

// listSlim lists page by page, so that no more than one page is in the memory as it came.
func (c *Controller) listSlim(ctx context.Context, api *requests, o metav1.ListOptions) (*certificatesv1.CertificateSigningRequestList, error) {
	o.ResourceVersion, o.ResourceVersionMatch, o.Limit = "", "", listPage // a cache would answer with all at once
	all := &certificatesv1.CertificateSigningRequestList{}
	for {
		page, err := api.List(ctx, o)
		if err != nil {
			return nil, err
		}
		for i := range page.Items {
			slimmed, _ := c.slim(&page.Items[i]) // it never fails
			all.Items = append(all.Items, *slimmed.(*certificatesv1.CertificateSigningRequest))
		}
		all.ListMeta = page.ListMeta
		if o.Continue = page.Continue; o.Continue == "" {
			return all, nil
		}
	}
}
