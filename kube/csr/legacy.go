package csr

import (
	"context"
	"encoding/json"
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"hsm-signer/kube/clientset"
)

// legacyClient serves certificates.k8s.io/v1beta1 (Kubernetes up to 1.21) as v1. The two have the
// same wire shape; only the signer name may be unset in v1beta1, which is an empty one here.
type legacyClient struct {
	client clientset.Requests[*certificatesv1beta1.CertificateSigningRequest,
		*certificatesv1beta1.CertificateSigningRequestList]
}

func (l legacyClient) Get(
	ctx context.Context, name string, o metav1.GetOptions,
) (*certificatesv1.CertificateSigningRequest, error) {
	old, err := l.client.Get(ctx, name, o)
	return upgrade[certificatesv1.CertificateSigningRequest](old, err)
}

func (l legacyClient) List(
	ctx context.Context, o metav1.ListOptions,
) (*certificatesv1.CertificateSigningRequestList, error) {
	old, err := l.client.List(ctx, o)
	return upgrade[certificatesv1.CertificateSigningRequestList](old, err)
}

func (l legacyClient) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	old, err := l.client.Watch(ctx, o)
	if err != nil {
		return nil, err
	}
	return watch.Filter(old, func(e watch.Event) (watch.Event, bool) {
		if csr, ok := e.Object.(*certificatesv1beta1.CertificateSigningRequest); ok {
			upgraded, err := upgrade[certificatesv1.CertificateSigningRequest](csr, nil)
			if err != nil { // an error event makes the reflector list again: nothing is lost
				return watch.Event{Type: watch.Error,
					Object: &apierrors.NewInternalError(err).ErrStatus}, true
			}
			e.Object = upgraded
		}
		return e, true
	}), nil
}

func (l legacyClient) UpdateApproval(
	ctx context.Context, name string, csr *certificatesv1.CertificateSigningRequest,
	o metav1.UpdateOptions,
) (*certificatesv1.CertificateSigningRequest, error) {
	old, err := downgrade(csr)
	if err == nil {
		old, err = l.client.UpdateApproval(ctx, name, old, o)
	}
	return upgrade[certificatesv1.CertificateSigningRequest](old, err)
}

func (l legacyClient) UpdateStatus(
	ctx context.Context, csr *certificatesv1.CertificateSigningRequest, o metav1.UpdateOptions,
) (*certificatesv1.CertificateSigningRequest, error) {
	old, err := downgrade(csr)
	if err == nil {
		old, err = l.client.UpdateStatus(ctx, old, o)
	}
	return upgrade[certificatesv1.CertificateSigningRequest](old, err)
}

func (l legacyClient) Delete(ctx context.Context, name string, o metav1.DeleteOptions) error {
	return l.client.Delete(ctx, name, o)
}

// upgrade passes on an error, or returns the v1beta1 object as the v1 object T.
func upgrade[T any](old any, err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	upgraded := new(T)
	return upgraded, rewrite(old, upgraded)
}

func downgrade(
	csr *certificatesv1.CertificateSigningRequest,
) (*certificatesv1beta1.CertificateSigningRequest, error) {
	old := &certificatesv1beta1.CertificateSigningRequest{}
	err := rewrite(csr, old)
	if csr.Spec.SignerName == "" {
		old.Spec.SignerName = nil
	}
	return old, err
}

// rewrite reads what was written as one version as another of the same shape.
func rewrite(from, to any) error {
	text, err := json.Marshal(from)
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	if err != nil {
		return fmt.Errorf("turn %T into %T: %w", from, to, err)
	}
	return nil
}
