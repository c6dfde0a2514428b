// Package csr is the first kind of certificate request: CertificateSigningRequest.
//
// Duty: find out which version of the API there is, certificates.k8s.io/v1 or v1beta1; read, watch,
// count and write requests in it, as v1 objects whatever the version; and read the state of a
// request from its conditions.
//
// Contract: it implements the interfaces of kube/request. Of a request that is listed or watched,
// only what a sync needs is kept, however large the request is.
package csr

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"hsm-signer/kube/clientset"
	"hsm-signer/kube/request"
)

// A Client reads and writes requests as v1, whichever version the API server has.
type Client = clientset.Requests[*certificatesv1.CertificateSigningRequest,
	*certificatesv1.CertificateSigningRequestList]

// A Kind is the CertificateSigningRequests of some signer names.
type Kind struct {
	Client      clientset.Interface
	SignerNames []string
	// AcceptUnset also serves requests without a signer name (clusters before 1.18).
	AcceptUnset bool
	// KeepFinished keeps what a decision needs of finished requests too. A shadow decides on all.
	KeepFinished bool
}

// Serves reports whether requests of the signer name are served; empty: those without one.
func (k Kind) Serves(signer string) bool {
	if signer == "" {
		return k.AcceptUnset
	}
	return slices.Contains(k.SignerNames, signer)
}

// Named reports whether the name has no namespace.
func (k Kind) Named(name string) bool { return !strings.Contains(name, "/") }

// An API is the API that the cluster has.
type API struct {
	Kind   Kind
	Client Client

	version string // the group and the version
	legacy  bool   // it is v1beta1
}

// Find asks the API server which version it has and prefers v1.
func (k Kind) Find(ctx context.Context) (request.API, error) {
	api, err := k.find(ctx)
	if err != nil {
		return nil, err
	}
	return api, nil
}

func (k Kind) find(ctx context.Context) (*API, error) {
	ctx, cancel := context.WithTimeout(ctx, request.DiscoveryTimeout)
	defer cancel()
	const group = "certificates.k8s.io/"
	for _, version := range []string{"v1", "v1beta1"} {
		served, err := k.Client.HasResource(ctx, group+version, "certificatesigningrequests")
		switch {
		case err != nil:
			return nil, err
		case !served:
			continue
		}
		api := &API{Kind: k, version: group + version, legacy: version == "v1beta1"}
		if api.legacy {
			api.Client = legacyClient{k.Client.CertificateSigningRequestsV1beta1()}
		} else {
			api.Client = k.Client.CertificateSigningRequests()
		}
		return api, nil
	}
	return nil, request.NoAPI("the API server has CertificateSigningRequest neither in " +
		"certificates.k8s.io/v1 nor in v1beta1")
}

// Check returns the version of the API, and an error if a controller could not watch the requests
// of the signer names: API servers before Kubernetes 1.18 know none, so all requests must be
// watched (AcceptUnset). It tries what the controller does, whatever version the server says it is.
func (k Kind) Check(ctx context.Context) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, request.DiscoveryTimeout)
	defer cancel()
	api, err := k.find(ctx)
	if err != nil {
		return "", err
	}
	if !api.legacy || k.AcceptUnset {
		return api.version, nil
	}
	for _, selector := range api.Selectors() {
		_, err := api.List(ctx, metav1.ListOptions{FieldSelector: selector, Limit: 1})
		// a missing permission is not what is asked here
		if err != nil && !apierrors.IsForbidden(err) {
			return api.version, err
		}
	}
	return api.version, nil
}

// Version is the group and the version.
func (a *API) Version() string { return a.version }

// Selectors select the requests of each signer name.
func (a *API) Selectors() []string {
	if a.Kind.AcceptUnset && a.legacy {
		// A server before 1.18 knows no such selector, and requests without a signer name match
		// none: watch everything and sort it out here.
		return []string{""}
	}
	return request.Selectors(a.Kind.SignerNames)
}

// List returns one page of requests, each trimmed.
func (a *API) List(
	ctx context.Context, o metav1.ListOptions,
) (*metainternalversion.List, error) {
	page, err := a.Client.List(ctx, o)
	if err != nil {
		return nil, a.explain(o.FieldSelector, err)
	}
	all := &metainternalversion.List{ListMeta: page.ListMeta}
	for i := range page.Items {
		all.Items = append(all.Items, a.trim(&page.Items[i]))
	}
	return all, nil
}

// Watch watches requests, and trims each as soon as it has it.
func (a *API) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	w, err := a.Client.Watch(ctx, o)
	if err != nil {
		return nil, a.explain(o.FieldSelector, err)
	}
	return watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
		csr, is := e.Object.(*certificatesv1.CertificateSigningRequest)
		if is && e.Type != watch.Bookmark { // whose annotations are client-go's
			e.Object = a.trim(csr)
		}
		return e, true
	}), nil
}

// ListsFirst reports whether the API is v1beta1: servers with it do not know a watch that begins
// with all requests, and do not refuse it.
func (a *API) ListsFirst() bool { return a.legacy }

// explain says what the error of a list or a watch means for the operator.
func (a *API) explain(selector string, err error) error {
	if a.legacy && apierrors.IsBadRequest(err) {
		return fmt.Errorf("watch certificate requests (%s): %w: servers before Kubernetes "+
			"1.18 know no "+
			"signer names; if this is one, set UNSET_SIGNER_NAME=accept", selector, err)
	}
	return fmt.Errorf("watch certificate requests (%s): %w", cmp.Or(selector, "all of them"), err)
}

// Get reads the request of that name.
func (a *API) Get(ctx context.Context, name string) (request.Object, error) {
	csr, err := a.Client.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return a.Whole(csr), nil
}

// Count asks the API server for one request, and how many more there are.
func (a *API) Count(ctx context.Context) (total int, err error) {
	page, err := a.Client.List(ctx, metav1.ListOptions{Limit: 1})
	if err == nil {
		total, err = request.Total(page.ListMeta, len(page.Items))
	}
	if err != nil {
		return 0, fmt.Errorf("count the certificate requests: %w", err)
	}
	return total, nil
}
