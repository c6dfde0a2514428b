package csr

import (
	"context"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/kube/request"
	"hsm-signer/policy"
)

// A Request is a CertificateSigningRequest; see [request.Object].
type Request struct {
	*certificatesv1.CertificateSigningRequest

	api       *API
	truncated bool
	ignored   string // why it is left as it is
}

var _ request.Object = (*Request)(nil)

// Whole returns the request with nothing taken from it. The object must not be changed afterwards.
func (a *API) Whole(csr *certificatesv1.CertificateSigningRequest) *Request {
	return &Request{CertificateSigningRequest: csr, api: a}
}

// Reference returns the reference that Events use.
func (r *Request) Reference() *corev1.ObjectReference {
	return &corev1.ObjectReference{
		APIVersion: certificatesv1.SchemeGroupVersion.String(), Kind: "CertificateSigningRequest",
		Name: r.Name, UID: r.UID, ResourceVersion: r.ResourceVersion,
	}
}

// Signer is the signer name; empty if it is unset, which is possible before Kubernetes 1.18.
func (r *Request) Signer() string { return r.Spec.SignerName }

// Ignored returns why the request is left as it is, or "".
func (r *Request) Ignored() string { return r.ignored }

// Certificate is the certificate with its chain, in PEM.
func (r *Request) Certificate() []byte { return r.Status.Certificate }

// Truncated reports whether the request must be read again before it is decided on or written.
func (r *Request) Truncated() bool { return r.truncated }

// NeedsApproval reports true.
func (r *Request) NeedsApproval() bool { return true }

// PublishFirst reports whether the request names no signer: before Kubernetes 1.18 the controller
// manager signs whatever is approved and has no certificate yet, with the cluster's own CA and the
// requester's own subject.
func (r *Request) PublishFirst() bool { return r.Spec.SignerName == "" }

// State reads the state from the conditions and the certificate. The API server lets a certificate
// be set on a request that is denied or failed, so these come first. A request without a signer
// name is finished only when it is approved too (see [Request.PublishFirst]).
func (r *Request) State() request.State {
	var approval, refusal bool
	for _, condition := range r.Status.Conditions {
		if condition.Status != corev1.ConditionTrue && condition.Status != "" {
			continue
		}
		switch condition.Type {
		case certificatesv1.CertificateApproved:
			approval = true
		case certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
			refusal = true
		}
	}
	switch certified := len(r.Status.Certificate) > 0; {
	case refusal && !certified:
		return request.Refused
	case refusal:
		return request.Unclear
	case certified && approval:
		return request.Issued
	case certified && r.Spec.SignerName != "":
		return request.Unclear
	case approval:
		return request.Approved
	}
	return request.Pending
}

// StoredSize is the size of the object, and of its key three times, in bytes.
func (r *Request) StoredSize() int { return storedSize(r.CertificateSigningRequest) }

func storedSize(csr *certificatesv1.CertificateSigningRequest) int {
	const keyPrefix, overhead = len("/registry/certificatesigningrequests/"), 256
	return csr.Size() + 3*(keyPrefix+len(csr.Name)) + overhead
}

// Submission takes from the object what a decision may see.
func (r *Request) Submission() policy.Submission { return Submission(r.CertificateSigningRequest) }

// Submission takes from the object what a decision may see.
func Submission(csr *certificatesv1.CertificateSigningRequest) policy.Submission {
	s := policy.Submission{
		UID:         string(csr.UID),
		Name:        csr.Name,
		SignerName:  csr.Spec.SignerName,
		PEM:         csr.Spec.Request,
		Age:         time.Since(csr.CreationTimestamp.Time),
		ObjectFault: request.SizeFault(storedSize(csr)),
		Requester: policy.Requester{
			Username: csr.Spec.Username,
			UID:      csr.Spec.UID,
			Groups:   csr.Spec.Groups,
			Extra:    make(map[string][]string, len(csr.Spec.Extra)),
		},
	}
	for k, v := range csr.Spec.Extra {
		s.Requester.Extra[k] = v
	}
	for _, usage := range csr.Spec.Usages {
		s.Usages = append(s.Usages, policy.Usage(usage))
	}
	if csr.Spec.ExpirationSeconds != nil {
		s.Lifetime = time.Duration(*csr.Spec.ExpirationSeconds) * time.Second
	}
	return s
}

// Read reads the request again. It returns a NotFound error if it is gone or was recreated.
func (r *Request) Read(ctx context.Context) (request.Object, error) {
	csr, err := r.api.Client.Get(ctx, r.Name, metav1.GetOptions{})
	switch {
	case err != nil:
		return nil, err
	case csr.UID != r.UID:
		return nil, apierrors.NewNotFound(certificatesv1.Resource("certificatesigningrequests"),
			r.Name)
	}
	return r.api.Whole(csr), nil
}

// Approve writes the condition Approved.
func (r *Request) Approve(ctx context.Context, reason, message string) (request.Object, error) {
	return r.updateApproval(ctx, r.with(certificatesv1.CertificateApproved, reason, message))
}

// Publish writes the certificate.
func (r *Request) Publish(ctx context.Context, chain []byte) (request.Object, error) {
	csr := r.toWrite()
	csr.Status.Certificate = chain
	return r.updateStatus(ctx, csr)
}

// Refuse denies a pending request, and fails one that is approved, which cannot be taken back.
func (r *Request) Refuse(ctx context.Context, reason, message string) (err error) {
	switch r.State() {
	case request.Pending:
		_, err = r.updateApproval(ctx, r.with(certificatesv1.CertificateDenied, reason, message))
	case request.Approved:
		_, err = r.updateStatus(ctx, r.with(certificatesv1.CertificateFailed, reason, message))
	}
	return err
}

// Delete deletes the request, unless it has changed or is gone.
func (r *Request) Delete(ctx context.Context) error {
	return r.api.Client.Delete(ctx, r.Name, metav1.DeleteOptions{
		Preconditions: request.Unchanged(r.ObjectMeta),
	})
}

// toWrite returns a shallow copy of the object to change and send. It has no managed fields: when a
// subresource is updated, the API server uses those that it has.
func (r *Request) toWrite() *certificatesv1.CertificateSigningRequest {
	csr := *r.CertificateSigningRequest
	csr.ManagedFields = nil
	return &csr
}

// with returns a copy of the object with one condition more.
func (r *Request) with(
	kind certificatesv1.RequestConditionType, reason, message string,
) *certificatesv1.CertificateSigningRequest {
	csr, now := r.toWrite(), metav1.Now()
	csr.Status.Conditions = append(slices.Clip(csr.Status.Conditions),
		certificatesv1.CertificateSigningRequestCondition{
			Type: kind, Status: corev1.ConditionTrue, Reason: reason, Message: message,
			LastUpdateTime: now, LastTransitionTime: now,
		})
	return csr
}

func (r *Request) updateApproval(
	ctx context.Context, csr *certificatesv1.CertificateSigningRequest,
) (request.Object, error) {
	updated, err := r.api.Client.UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{})
	if err != nil {
		return nil, err
	}
	return r.api.Whole(updated), nil
}

func (r *Request) updateStatus(
	ctx context.Context, csr *certificatesv1.CertificateSigningRequest,
) (request.Object, error) {
	updated, err := r.api.Client.UpdateStatus(ctx, csr, metav1.UpdateOptions{})
	if err != nil {
		return nil, err
	}
	return r.api.Whole(updated), nil
}
