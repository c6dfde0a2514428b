// Package csr speaks to the CertificateSigningRequest API of a cluster.
//
// Duty: find out which version of the API there is, certificates.k8s.io/v1 or v1beta1, and read,
// watch, count and write requests in it, as v1 objects whatever the version.
//
// Contract: a watch that has ended before its time is never continued: all is listed again. An
// error of the API server comes back as it is, or wrapped.
package csr

import (
	"cmp"
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
)

// A Client is what is needed of a version of the API; whatever the version, the objects are v1.
// client-go's v1 client is one.
type Client interface {
	Get(
		ctx context.Context, name string, o metav1.GetOptions,
	) (*certificatesv1.CertificateSigningRequest, error)
	List(
		ctx context.Context, o metav1.ListOptions,
	) (*certificatesv1.CertificateSigningRequestList, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
	UpdateApproval(
		ctx context.Context, name string, csr *certificatesv1.CertificateSigningRequest,
		o metav1.UpdateOptions,
	) (*certificatesv1.CertificateSigningRequest, error)
	UpdateStatus(
		ctx context.Context, csr *certificatesv1.CertificateSigningRequest, o metav1.UpdateOptions,
	) (*certificatesv1.CertificateSigningRequest, error)
	Delete(ctx context.Context, name string, o metav1.DeleteOptions) error
}

var _ Client = certificatesclient.CertificateSigningRequestInterface(nil)

// An API is the API that the cluster has.
type API struct {
	Client
	// Version is the group and the version.
	Version string
	// Legacy says that it is v1beta1.
	Legacy bool
}

// discoveryTimeout bounds one attempt to reach the API server.
const discoveryTimeout = 10 * time.Second

// Discover asks the API server which version it has and prefers v1.
func Discover(ctx context.Context, client kubernetes.Interface) (*API, error) {
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
		if !slices.ContainsFunc(resources.APIResources, func(r metav1.APIResource) bool {
			return r.Name == "certificatesigningrequests"
		}) {
			continue
		}
		api := &API{Version: group + version, Legacy: version == "v1beta1"}
		if api.Legacy {
			api.Client = legacyClient{client.CertificatesV1beta1().CertificateSigningRequests()}
		} else {
			api.Client = client.CertificatesV1().CertificateSigningRequests()
		}
		return api, nil
	}
	return nil, errors.New("the API server has CertificateSigningRequest neither in " +
		"certificates.k8s.io/v1 nor in v1beta1")
}

// Version returns the version of the API that a controller would use.
func Version(ctx context.Context, client kubernetes.Interface) (string, error) {
	api, err := Discover(ctx, client)
	if err != nil {
		return "", err
	}
	return api.Version, nil
}

// CheckSignerNames returns an error if a controller could not watch the requests of the signer
// names: API servers before Kubernetes 1.18 know none, so all requests must be watched
// (acceptUnset). It tries what the controller does, whatever version the server says it is.
func CheckSignerNames(
	ctx context.Context, client kubernetes.Interface, names []string, acceptUnset bool,
) error {
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	api, err := Discover(ctx, client)
	if err != nil || !api.Legacy || acceptUnset {
		return err
	}
	for _, name := range names {
		selector := SignerSelector(name)
		_, err := api.List(ctx, metav1.ListOptions{FieldSelector: selector, Limit: 1})
		if err != nil && !apierrors.IsForbidden(err) { // a missing permission is not what is asked here
			return api.ExplainWatch(selector, err)
		}
	}
	return nil
}

// SignerSelector selects the requests of a signer name.
func SignerSelector(name string) string {
	return fields.OneTermEqualSelector("spec.signerName", name).String()
}

// ListerWatcher lists, by the function, and watches what matches the field selector, and tells the
// observer how each attempt went; nil means that a watch was established. A watch that has ended
// before its time is not gone on with: etcd may have been set back while the API server was
// unavailable, and a watch from a version that is yet to come shows nothing, and no error. So all
// is listed again.
func (a *API) ListerWatcher(
	selector string, list ListFunc, observe func(error),
) cache.ListerWatcher {
	// ends is when the last watch is to end; nil: there was none since all was listed.
	var ends atomic.Pointer[time.Time]
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			all, err := list(ctx, a, o)
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
				return nil, apierrors.NewResourceExpired(
					"the watch ended early: listing all again")
			}
			o.FieldSelector = selector
			w, err := a.Watch(ctx, o)
			observe(err)
			if o.TimeoutSeconds != nil {
				end := now.Add(time.Duration(*o.TimeoutSeconds) * time.Second)
				ends.Store(&end)
			}
			return w, err
		},
	}
	if a.Legacy {
		return listFirst{lw}
	}
	return lw
}

// A ListFunc lists requests.
type ListFunc func(
	ctx context.Context, a *API, o metav1.ListOptions,
) (*metainternalversion.List, error)

// listFirst keeps client-go from asking for the initial state by a watch, which servers with
// v1beta1 do not know and do not refuse.
type listFirst struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is client-go's name for that.
func (listFirst) IsWatchListSemanticsUnSupported() bool { return true }

// ExplainWatch says what an error of a watch means for the operator; nil is none.
func (a *API) ExplainWatch(selector string, err error) error {
	switch {
	case err == nil:
		return nil
	case a.Legacy && apierrors.IsBadRequest(err):
		return fmt.Errorf("watch certificate requests (%s): %w: servers before Kubernetes 1.18 know no "+
			"signer names; if this is one, set UNSET_SIGNER_NAME=accept", selector, err)
	}
	return fmt.Errorf("watch certificate requests (%s): %w", cmp.Or(selector, "all of them"), err)
}

// Count returns the number of requests in the cluster, of all signers.
func Count(ctx context.Context, client kubernetes.Interface) (int, error) {
	api, err := Discover(ctx, client)
	if err != nil {
		return 0, err
	}
	return api.Count(ctx)
}

// Count asks the API server for one request, and how many more there are.
func (a *API) Count(ctx context.Context) (int, error) {
	page, err := a.List(ctx, metav1.ListOptions{Limit: 1})
	switch {
	case err != nil:
		return 0, fmt.Errorf("count the certificate requests: %w", err)
	case page.Continue == "":
		return len(page.Items), nil
	case page.RemainingItemCount == nil:
		return 0, errors.New("count the certificate requests: " +
			"the API server does not say how many there are")
	}
	return len(page.Items) + int(*page.RemainingItemCount), nil
}
