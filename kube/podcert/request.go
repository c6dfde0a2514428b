package podcert

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/kube/request"
	"hsm-signer/policy"
)

// A Request is a PodCertificateRequest; see [request.Object].
type Request struct {
	*certificatesv1.PodCertificateRequest

	api        *API
	key, proof []byte // what v1beta1 alone shows: spec.pkixPublicKey, spec.proofOfPossession
	truncated  bool
}

var _ request.Object = (*Request)(nil)

// Reference returns the reference that Events use.
func (r *Request) Reference() *corev1.ObjectReference {
	return &corev1.ObjectReference{
		APIVersion: r.api.version, Kind: "PodCertificateRequest",
		Namespace: r.Namespace, Name: r.Name, UID: r.UID, ResourceVersion: r.ResourceVersion,
	}
}

// Signer is the signer name.
func (r *Request) Signer() string { return r.Spec.SignerName }

// Ignored returns why the request is left as it is, or "": kubelets before 1.36 write their key
// into fields that v1 does not show, so the stub seems to be empty. A denial would be final.
func (r *Request) Ignored() string {
	if r.State().Open() && len(r.Spec.StubPKCS10Request)+len(r.key)+len(r.proof) == 0 {
		return "it shows no key (spec.stubPKCS10Request), since kubelet of the node " +
			string(r.Spec.NodeName) + " is older than 1.36: upgrade it, or enable v1beta1 in the " +
			"API server"
	}
	return ""
}

// Certificate is the certificate with its chain, in PEM.
func (r *Request) Certificate() []byte { return []byte(r.Status.CertificateChain) }

// Truncated reports whether the request must be read again before it is decided on or written.
func (r *Request) Truncated() bool { return r.truncated }

// NeedsApproval reports false: the API has no approval.
func (r *Request) NeedsApproval() bool { return false }

// PublishFirst reports false: there is no approval.
func (r *Request) PublishFirst() bool { return false }

// State reads the state from the conditions. There is no approval, so an open request is
// [request.Approved].
func (r *Request) State() request.State {
	for _, condition := range r.Status.Conditions {
		if condition.Status != metav1.ConditionTrue {
			continue
		}
		switch condition.Type {
		case certificatesv1.PodCertificateRequestConditionTypeIssued:
			return request.Issued
		case certificatesv1.PodCertificateRequestConditionTypeDenied,
			certificatesv1.PodCertificateRequestConditionTypeFailed:
			return request.Refused
		}
	}
	return request.Approved
}

// StoredSize is the size of the object, and of its key three times, in bytes.
func (r *Request) StoredSize() int {
	const keyPrefix, overhead = len("/registry/podcertificaterequests//"), 256
	return r.Size() + len(r.key) + len(r.proof) + overhead +
		3*(keyPrefix+len(r.Namespace)+len(r.Name))
}

// Submission takes from the object what a decision may see.
func (r *Request) Submission() policy.Submission {
	claim := &policy.PodCertificate{
		Stub: r.Spec.StubPKCS10Request, Key: r.key, Proof: r.proof,
		Annotations: r.Spec.UnverifiedUserAnnotations,
		Pod: policy.Pod{
			Namespace: r.Namespace, Name: r.Spec.PodName, UID: string(r.Spec.PodUID),
			ServiceAccount:    r.Spec.ServiceAccountName,
			ServiceAccountUID: string(r.Spec.ServiceAccountUID),
			Node:              string(r.Spec.NodeName), NodeUID: string(r.Spec.NodeUID),
		},
	}
	s := policy.Submission{
		UID: string(r.UID), Name: r.Namespace + "/" + r.Name, SignerName: r.Spec.SignerName,
		Requester: claim.Requester(), Age: time.Since(r.CreationTimestamp.Time),
		ObjectFault: request.SizeFault(r.StoredSize()), PodCertificate: claim,
	}
	if most := r.Spec.MaxExpirationSeconds; most != nil {
		s.Lifetime = time.Duration(*most) * time.Second
	}
	return s
}

// Read reads the request again. It returns a NotFound error if it is gone or was recreated.
func (r *Request) Read(ctx context.Context) (request.Object, error) {
	now, err := r.api.read(ctx, r.Namespace, r.Name)
	switch {
	case err != nil:
		return nil, err
	case now.UID != r.UID:
		return nil, apierrors.NewNotFound(certificatesv1.Resource(resource), r.Name)
	}
	return now, nil
}

// Approve returns an error: no state of a request has it called.
func (r *Request) Approve(context.Context, string, string) (request.Object, error) {
	return nil, errors.New("a pod certificate request has no approval")
}

// Publish writes the certificate, its dates and the condition in one update. It returns
// [request.ErrNotBefore] if the API server does not take the certificate for its notBefore.
func (r *Request) Publish(ctx context.Context, chain []byte) (request.Object, error) {
	leaf, err := leafOf(chain)
	if err != nil {
		return nil, err
	}
	pcr := r.with(certificatesv1.PodCertificateRequestConditionTypeIssued, "Issued",
		"the certificate was issued")
	pcr.Status.CertificateChain = string(chain)
	pcr.Status.NotBefore = &metav1.Time{Time: leaf.NotBefore}
	pcr.Status.NotAfter = &metav1.Time{Time: leaf.NotAfter}
	pcr.Status.BeginRefreshAt = &metav1.Time{Time: refreshAt(leaf.NotBefore, leaf.NotAfter)}
	updated, err := r.updateStatus(ctx, pcr)
	if refusesNotBefore(err) {
		return nil, fmt.Errorf("%w: %w", request.ErrNotBefore, err)
	}
	return updated, err
}

func leafOf(chain []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(chain)
	if block == nil {
		return nil, errors.New("the certificate to publish is not PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

// leastFromEnds is how far from both ends of a certificate's life its refresh must be.
const leastFromEnds = 10 * time.Minute

// refreshAt returns when kubelet is to begin to ask for the next certificate: at half of the
// lifetime.
func refreshAt(notBefore, notAfter time.Time) time.Time {
	half := notBefore.Add(notAfter.Sub(notBefore) / 2).Truncate(time.Second)
	if earliest := notBefore.Add(leastFromEnds); half.Before(earliest) {
		half = earliest
	}
	if latest := notAfter.Add(-leastFromEnds); half.After(latest) {
		half = latest
	}
	return half
}

// refusesNotBefore reports whether the API server finds the notBefore too far from its own clock.
func refusesNotBefore(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	for _, cause := range status.Status().Details.Causes {
		if cause.Field == "status.notBefore" {
			return true
		}
	}
	return false
}

// Refuse denies the request.
func (r *Request) Refuse(ctx context.Context, reason, message string) error {
	_, err := r.updateStatus(ctx,
		r.with(certificatesv1.PodCertificateRequestConditionTypeDenied, reason, message))
	return err
}

// Delete deletes the request, unless it has changed or is gone.
func (r *Request) Delete(ctx context.Context) error {
	return on(r.api.client.Delete(), r.Namespace).Name(r.Name).Body(&metav1.DeleteOptions{
		Preconditions: request.Unchanged(r.ObjectMeta),
	}).Do(ctx).Error()
}

// with returns a copy of the object with one condition more.
func (r *Request) with(kind, reason, message string) *certificatesv1.PodCertificateRequest {
	pcr := r.DeepCopy()
	pcr.Status.Conditions = append(pcr.Status.Conditions, metav1.Condition{
		Type: kind, Status: metav1.ConditionTrue, Reason: reason, Message: message,
		LastTransitionTime: metav1.Now(),
	})
	return pcr
}

func (r *Request) updateStatus(
	ctx context.Context, pcr *certificatesv1.PodCertificateRequest,
) (request.Object, error) {
	call := on(r.api.client.Put(), r.Namespace).Name(r.Name).SubResource("status")
	updated, err := r.api.whole(call.Body(r.api.statusOf(pcr)).Do(ctx).Get())
	if err != nil {
		return nil, err
	}
	return updated, nil
}
