// Package podcert is the second kind of certificate request: PodCertificateRequest, which kubelet
// makes for a pod's volume.
//
// Duty: find certificates.k8s.io/v1; read, watch and count requests; read the state of a request
// from its conditions; and write its answer, the certificate with its dates or a denial, at once.
//
// Contract: it implements the interfaces of kube/request. A request says which pod it is for, and
// whoever can create one can say anything, so it is only a claim (see policy.PodCertificate). The
// status is as the API server validates it (pkg/apis/certificates/validation in Kubernetes).
package podcert

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	certificatesclient "k8s.io/client-go/kubernetes/typed/certificates/v1"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/kube/request"
)

// A Kind is the PodCertificateRequests of some signer names.
type Kind struct {
	Client      kubernetes.Interface
	SignerNames []string
	// KeepFinished keeps what a decision needs of finished requests too. A shadow decides on all.
	KeepFinished bool
}

// Serves reports whether requests of the signer name are served.
func (k Kind) Serves(signer string) bool { return slices.Contains(k.SignerNames, signer) }

// An API is certificates.k8s.io/v1.
type API struct {
	kind   Kind
	client certificatesclient.PodCertificateRequestsGetter
}

const (
	version = "certificates.k8s.io/v1"
	// discoveryTimeout bounds one attempt to reach the API server.
	discoveryTimeout = 10 * time.Second
)

// ErrNoAPI is why a cluster before Kubernetes 1.37 cannot be served.
var ErrNoAPI = errors.New("the API server has no PodCertificateRequest in " + version + ", which " +
	"Kubernetes has since 1.37: set POD_CERTIFICATES=false, or upgrade the cluster")

// Find asks the API server whether it has the API. It returns [ErrNoAPI] if it has not.
func (k Kind) Find(ctx context.Context) (request.API, error) {
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	resources, err := k.Client.Discovery().ServerResourcesForGroupVersionWithContext(ctx, version)
	switch {
	case apierrors.IsNotFound(err):
		return nil, ErrNoAPI
	case err != nil:
		return nil, err
	}
	if !slices.ContainsFunc(resources.APIResources, func(r metav1.APIResource) bool {
		return r.Name == "podcertificaterequests"
	}) {
		return nil, ErrNoAPI
	}
	return &API{kind: k, client: k.Client.CertificatesV1()}, nil
}

// Version is the group and the version.
func (a *API) Version() string { return version }

// ListsFirst reports false: servers with this API can begin a watch with all requests.
func (a *API) ListsFirst() bool { return false }

// Selectors select the requests of each signer name.
func (a *API) Selectors() []string {
	var selectors []string
	for _, name := range a.kind.SignerNames {
		selectors = append(selectors, fields.OneTermEqualSelector("spec.signerName", name).String())
	}
	return selectors
}

// all are the requests of every namespace.
func (a *API) all() certificatesclient.PodCertificateRequestInterface {
	return a.client.PodCertificateRequests(metav1.NamespaceAll)
}

// List returns one page of requests, each trimmed.
func (a *API) List(
	ctx context.Context, o metav1.ListOptions,
) (*metainternalversion.List, error) {
	page, err := a.all().List(ctx, o)
	if err != nil {
		return nil, explain(o.FieldSelector, err)
	}
	all := &metainternalversion.List{ListMeta: page.ListMeta}
	for i := range page.Items {
		all.Items = append(all.Items, a.trim(&page.Items[i]))
	}
	return all, nil
}

// Watch watches requests, and trims each as soon as it has it.
func (a *API) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	w, err := a.all().Watch(ctx, o)
	if err != nil {
		return nil, explain(o.FieldSelector, err)
	}
	return watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
		pcr, is := e.Object.(*certificatesv1.PodCertificateRequest)
		if is && e.Type != watch.Bookmark { // whose annotations are client-go's
			e.Object = a.trim(pcr)
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
	return a.read(ctx, namespace, name)
}

func (a *API) read(ctx context.Context, namespace, name string) (*Request, error) {
	pcr, err := a.client.PodCertificateRequests(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return a.whole(pcr), nil
}

// Count asks the API server for one request, and how many more there are.
func (a *API) Count(ctx context.Context) (total int, err error) {
	page, err := a.all().List(ctx, metav1.ListOptions{Limit: 1})
	if err == nil {
		total, err = request.Total(page.ListMeta, len(page.Items))
	}
	if err != nil {
		return 0, fmt.Errorf("count the pod certificate requests: %w", err)
	}
	return total, nil
}

// mostMeta is how much of annotations, labels, and what else is in the metadata is kept, in bytes.
const mostMeta = 16 << 10

// trim returns the request without what a sync does not need. It may change the object.
func (a *API) trim(pcr *certificatesv1.PodCertificateRequest) *Request {
	r := a.whole(pcr)
	meta := metav1.ObjectMeta{
		Namespace: pcr.Namespace, Name: pcr.Name, UID: pcr.UID,
		ResourceVersion: pcr.ResourceVersion, CreationTimestamp: pcr.CreationTimestamp,
	}
	if !a.kind.KeepFinished && !r.State().Open() {
		return a.whole(&certificatesv1.PodCertificateRequest{
			ObjectMeta: meta, Status: pcr.Status,
			Spec: certificatesv1.PodCertificateRequestSpec{SignerName: pcr.Spec.SignerName},
		})
	}
	large := !request.HasRoom(r.StoredSize(), request.RoomForAnswer)
	pcr.ManagedFields = nil
	if r.truncated = large || pcr.ObjectMeta.Size() > mostMeta; r.truncated {
		pcr.ObjectMeta = meta
	}
	return r
}
