package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	certificatesclient "k8s.io/client-go/kubernetes/typed/certificates/v1"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/kube/apifault"
)

// requestClient is what the loop needs of a version of the
// CertificateSigningRequest API; whatever the version, the objects are v1.
// client-go's v1 client is one.
type requestClient interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (*certificatesv1.CertificateSigningRequest, error)
	List(ctx context.Context, o metav1.ListOptions) (*certificatesv1.CertificateSigningRequestList, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
	UpdateApproval(ctx context.Context, name string, csr *certificatesv1.CertificateSigningRequest, o metav1.UpdateOptions) (*certificatesv1.CertificateSigningRequest, error)
	UpdateStatus(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, o metav1.UpdateOptions) (*certificatesv1.CertificateSigningRequest, error)
	Delete(ctx context.Context, name string, o metav1.DeleteOptions) error
}

var _ requestClient = certificatesclient.CertificateSigningRequestInterface(nil)

// requests is the API that the cluster has, and what is known of it.
type requests struct {
	requestClient
	version string
	legacy  bool
	stores  []cache.Store
	synced  []cache.InformerSynced
}

// discoveryTimeout bounds one attempt to reach the API server.
const discoveryTimeout = 10 * time.Second

// discover asks the API server which version it has and prefers v1.
func discover(ctx context.Context, client kubernetes.Interface) (*requests, error) {
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	const group = "certificates.k8s.io/"
	for _, version := range []string{"v1", "v1beta1"} {
		resources, err := client.Discovery().ServerResourcesForGroupVersionWithContext(ctx, group+version)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(resources.APIResources, func(r metav1.APIResource) bool { return r.Name == "certificatesigningrequests" }) {
			continue
		}
		api := &requests{version: group + version, legacy: version == "v1beta1"}
		if api.legacy {
			api.requestClient = legacyClient{client.CertificatesV1beta1().CertificateSigningRequests()}
		} else {
			api.requestClient = client.CertificatesV1().CertificateSigningRequests()
		}
		return api, nil
	}
	return nil, errors.New("the API server has CertificateSigningRequest neither in certificates.k8s.io/v1 nor in v1beta1")
}

// APIVersion returns the version of the API that a controller would use.
func APIVersion(ctx context.Context, client kubernetes.Interface) (string, error) {
	api, err := discover(ctx, client)
	if err != nil {
		return "", err
	}
	return api.version, nil
}

// CheckSignerNames returns an error if a controller could not watch the requests of the signer
// names: API servers before Kubernetes 1.18 know none, so all requests must be watched (see
// [Config.AcceptUnset]). It tries what the controller does, whatever version the server says it is.
func CheckSignerNames(
	ctx context.Context, client kubernetes.Interface, names []string, acceptUnset bool,
) error {
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	api, err := discover(ctx, client)
	if err != nil || !api.legacy || acceptUnset {
		return err
	}
	for _, name := range names {
		selector := signerSelector(name)
		_, err := api.List(ctx, metav1.ListOptions{FieldSelector: selector, Limit: 1})
		if err != nil && !apierrors.IsForbidden(err) { // a missing permission is not what is asked here
			return explainWatch(selector, api, err)
		}
	}
	return nil
}

// signerSelector selects the requests of a signer name.
func signerSelector(name string) string {
	return fields.OneTermEqualSelector("spec.signerName", name).String()
}

// listerWatcher lists, by the function, and watches what matches the field selector, and tells the
// observer how each attempt went; nil means that a watch was established. A watch that has ended
// before its time is not gone on with: etcd may have been set back while the API server was away,
// and a watch from a version that is yet to come shows nothing, and no error. So all is listed
// anew.
func (r *requests) listerWatcher(selector string, list listFunc, observe func(error)) cache.ListerWatcher {
	var ends atomic.Pointer[time.Time] // when the last watch is to end; nil: there was none since all was listed
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			all, err := list(ctx, r, o)
			if err != nil {
				observe(err)
				return nil, err
			}
			ends.Store(nil)
			return all, nil
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			now := time.Now()
			if end := ends.Load(); end != nil && now.Before(*end) && o.ResourceVersion != "" {
				return nil, apierrors.NewResourceExpired("the watch has ended before its time: all is listed anew")
			}
			o.FieldSelector = selector
			w, err := r.Watch(ctx, o)
			observe(err)
			if o.TimeoutSeconds != nil {
				end := now.Add(time.Duration(*o.TimeoutSeconds) * time.Second)
				ends.Store(&end)
			}
			return w, err
		},
	}
	if r.legacy {
		return listFirst{lw}
	}
	return lw
}

// A listFunc lists requests.
type listFunc func(ctx context.Context, r *requests, o metav1.ListOptions) (*metainternalversion.List, error)

// listFirst keeps client-go from asking for the initial state by a watch, which servers with
// v1beta1 do not know and do not refuse.
type listFirst struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is client-go's name for that.
func (listFirst) IsWatchListSemanticsUnSupported() bool { return true }

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
