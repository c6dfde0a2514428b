// Package podcert is the second kind of certificate request: PodCertificateRequest, which kubelet
// makes for a pod's volume.
//
// Duty: find certificates.k8s.io/v1beta1 or v1; read, watch and count requests; read the state of a
// request from its conditions; and write its answer, the certificate with its dates or a denial, at
// once.
//
// Contract: it implements the interfaces of kube/request. A request says which pod it is for, and
// whoever can create one can say anything, so it is only a claim (see policy.PodCertificate). The
// status is as the API server validates it (pkg/apis/certificates/validation in Kubernetes).
package podcert

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/kube/clientset"
	"hsm-signer/kube/request"
)

// A Kind is the PodCertificateRequests of some signer names.
type Kind struct {
	Client      clientset.Interface
	SignerNames []string
	// KeepFinished keeps what a decision needs of finished requests too. A shadow decides on all.
	KeepFinished bool
}

// Serves reports whether requests of the signer name are served.
func (k Kind) Serves(signer string) bool { return slices.Contains(k.SignerNames, signer) }

// Named reports whether the name has a namespace.
func (k Kind) Named(name string) bool { return strings.Contains(name, "/") }

// An API is a version of certificates.k8s.io. Both are read and written by one client, since they
// differ only in their objects; see [API.whole].
type API struct {
	kind    Kind
	version string // the group and the version
	client  rest.Interface
}

const (
	group    = "certificates.k8s.io/"
	resource = "podcertificaterequests"
)

// ErrNoAPI is why a cluster before Kubernetes 1.37 cannot be served, unless its v1beta1 is enabled.
const ErrNoAPI = request.NoAPI("the API server has no PodCertificateRequest in " + group + "v1, " +
	"which Kubernetes has since 1.37, nor in v1beta1: set POD_CERTIFICATES=false, or upgrade the " +
	"cluster")

// Find asks the API server which version it has. It prefers v1beta1, which alone shows the keys of
// kubelets before 1.36. It returns [ErrNoAPI] if there is none.
func (k Kind) Find(ctx context.Context) (request.API, error) {
	ctx, cancel := context.WithTimeout(ctx, request.DiscoveryTimeout)
	defer cancel()
	for _, api := range []*API{
		{k, group + "v1beta1", k.Client.PodCertificates("v1beta1")},
		{k, group + "v1", k.Client.PodCertificates("v1")},
	} {
		served, err := k.Client.HasResource(ctx, api.version, resource)
		if err != nil || served {
			return api, err
		}
	}
	return nil, ErrNoAPI
}

// Version is the group and the version.
func (a *API) Version() string { return a.version }

// ListsFirst reports false: servers with this API can begin a watch with all requests.
func (a *API) ListsFirst() bool { return false }

// Selectors select the requests of each signer name.
func (a *API) Selectors() []string { return request.Selectors(a.kind.SignerNames) }

// on returns a call on the requests of a namespace, or of all.
func on(call *rest.Request, namespace string) *rest.Request {
	return call.NamespaceIfScoped(namespace, namespace != "").Resource(resource)
}

// list lists the requests of all namespaces.
func (a *API) list(ctx context.Context, o metav1.ListOptions) (runtime.Object, metav1.ListMeta,
	error) {
	call := on(a.client.Get(), "").VersionedParams(&o, clientset.ParameterCodec)
	page, err := call.Do(ctx).Get()
	if err != nil {
		return nil, metav1.ListMeta{}, err
	}
	about, err := meta.ListAccessor(page)
	if err != nil {
		return nil, metav1.ListMeta{}, err
	}
	return page, metav1.ListMeta{ResourceVersion: about.GetResourceVersion(),
		Continue: about.GetContinue(), RemainingItemCount: about.GetRemainingItemCount()}, nil
}

// List returns one page of requests, each trimmed.
func (a *API) List(
	ctx context.Context, o metav1.ListOptions,
) (*metainternalversion.List, error) {
	page, about, err := a.list(ctx, o)
	if err != nil {
		return nil, explain(o.FieldSelector, err)
	}
	all := &metainternalversion.List{ListMeta: about}
	err = meta.EachListItem(page, func(object runtime.Object) error {
		r, err := a.whole(object, nil)
		if err == nil {
			all.Items = append(all.Items, a.trim(r))
		}
		return err
	})
	return all, err
}

// Watch watches requests, and trims each as soon as it has it.
func (a *API) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	call := on(a.client.Get(), "").VersionedParams(&o, clientset.ParameterCodec)
	if o.TimeoutSeconds != nil {
		call = call.Timeout(time.Duration(*o.TimeoutSeconds) * time.Second)
	}
	w, err := call.Watch(ctx)
	if err != nil {
		return nil, explain(o.FieldSelector, err)
	}
	return watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
		r, err := a.whole(e.Object, nil)
		if err == nil && e.Type != watch.Bookmark { // whose annotations are client-go's
			e.Object = a.trim(r)
		}
		return e, true
	}), nil
}

// explain says which requests could not be listed or watched.
func explain(selector string, err error) error {
	return fmt.Errorf("watch pod certificate requests (%s): %w", selector, err)
}

// Get reads the request NAMESPACE/NAME.
func (a *API) Get(ctx context.Context, name string) (request.Object, error) {
	namespace, name, err := cache.SplitMetaNamespaceKey(name)
	if err != nil {
		return nil, err
	}
	r, err := a.read(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (a *API) read(ctx context.Context, namespace, name string) (*Request, error) {
	return a.whole(on(a.client.Get(), namespace).Name(name).Do(ctx).Get())
}

// Count asks the API server for one request, and how many more there are.
func (a *API) Count(ctx context.Context) (total int, err error) {
	page, about, err := a.list(ctx, metav1.ListOptions{Limit: 1})
	if err == nil {
		total, err = request.Total(about, meta.LenList(page))
	}
	if err != nil {
		return 0, fmt.Errorf("count the pod certificate requests: %w", err)
	}
	return total, nil
}

// trim returns the request without what a sync does not need. It may change the object.
func (a *API) trim(r *Request) *Request {
	if !a.kind.KeepFinished && !r.State().Open() {
		return &Request{api: a, PodCertificateRequest: &certificatesv1.PodCertificateRequest{
			ObjectMeta: request.TrimmedMeta(r.ObjectMeta), Status: r.Status,
			Spec: certificatesv1.PodCertificateRequestSpec{SignerName: r.Spec.SignerName},
		}}
	}
	r.truncated = request.Trim(&r.ObjectMeta, r.StoredSize())
	return r
}
