package kube

import (
	"context"
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/kube/apifault"
	"hsm-signer/kube/csr"
)

// requests is the API that the cluster has, and what is known of it.
type requests struct {
	*csr.API
	stores []cache.Store
	synced []cache.InformerSynced
}

// cached returns the request as it was last seen, or nil if it is gone or another has its name.
func (r *requests) cached(k key) *stored {
	for _, store := range r.stores {
		object, found, err := store.GetByKey(k.name)
		if err != nil || !found {
			continue
		}
		if request, ok := object.(*stored); ok && request.UID == k.uid {
			return request
		}
	}
	return nil
}

// fresh reads the request from the API server itself. It answers errLookAgain when
// it is gone or another has its name.
func (r *requests) fresh(
	ctx context.Context, old *certificatesv1.CertificateSigningRequest,
) (*certificatesv1.CertificateSigningRequest, error) {
	csr, err := r.Get(ctx, old.Name, metav1.GetOptions{})
	switch {
	case apifault.VersionGone(err):
		return nil, fmt.Errorf("read the request again: %w", err)
	case apierrors.IsNotFound(err) || err == nil && csr.UID != old.UID:
		return nil, errLookAgain
	case err != nil:
		return nil, fmt.Errorf("read the request again: %w", err)
	}
	return csr, nil
}
