package clientset

import (
	"context"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
)

// A Getter reads one object.
type Getter[T any] interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (T, error)
}

// A Lister reads many objects.
type Lister[L any] interface {
	List(ctx context.Context, o metav1.ListOptions) (L, error)
}

// A Watcher follows the changes of objects.
type Watcher interface {
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// A Creator creates objects.
type Creator[T any] interface {
	Create(ctx context.Context, object T, o metav1.CreateOptions) (T, error)
}

// An Updater replaces objects.
type Updater[T any] interface {
	Update(ctx context.Context, object T, o metav1.UpdateOptions) (T, error)
}

// A StatusUpdater replaces the status of objects.
type StatusUpdater[T any] interface {
	UpdateStatus(ctx context.Context, object T, o metav1.UpdateOptions) (T, error)
}

// A Deleter deletes objects.
type Deleter interface {
	Delete(ctx context.Context, name string, o metav1.DeleteOptions) error
}

// Pods are the pods of a namespace.
type Pods interface {
	Getter[*corev1.Pod]
	Lister[*corev1.PodList]
	Deleter
}

// ServiceAccounts are the service accounts of a namespace.
type ServiceAccounts interface {
	Getter[*corev1.ServiceAccount]
	// CreateToken returns a new token of the account.
	CreateToken(ctx context.Context, name string, request *authenticationv1.TokenRequest,
		o metav1.CreateOptions) (*authenticationv1.TokenRequest, error)
}

// Leases are the leases of a namespace.
type Leases interface {
	Getter[*coordinationv1.Lease]
	Creator[*coordinationv1.Lease]
	Updater[*coordinationv1.Lease]
}

// Requests are the CertificateSigningRequests of one version of the API.
type Requests[T, L any] interface {
	Getter[T]
	Lister[L]
	Watcher
	StatusUpdater[T]
	Deleter
	// UpdateApproval replaces the conditions of the request.
	UpdateApproval(ctx context.Context, name string, request T, o metav1.UpdateOptions) (T, error)
}

// ClusterTrustBundles are those of the cluster.
type ClusterTrustBundles interface {
	Getter[*certificatesv1.ClusterTrustBundle]
	Creator[*certificatesv1.ClusterTrustBundle]
	Updater[*certificatesv1.ClusterTrustBundle]
}

// ConfigMaps are those of a namespace.
type ConfigMaps interface {
	Getter[*corev1.ConfigMap]
	Creator[*corev1.ConfigMap]
	Updater[*corev1.ConfigMap]
}

// pointer is *T, which is an object.
type pointer[T any] interface {
	*T
	runtime.Object
	metav1.Object
}

// listPointer is *L, which is a list of objects.
type listPointer[L any] interface {
	*L
	runtime.Object
}

// objects returns a client of a resource whose objects are of type T.
func objects[T any, P pointer[T]](c rest.Interface, resource, namespace string) *gentype.Client[P] {
	return gentype.NewClient[P](resource, c, ParameterCodec, namespace, func() P { return new(T) })
}

// listed returns a client of a resource whose objects are of type T, and its lists of type L.
func listed[T, L any, P pointer[T], Q listPointer[L]](
	c rest.Interface, resource, namespace string,
) *gentype.ClientWithList[P, Q] {
	return gentype.NewClientWithList[P, Q](resource, c, ParameterCodec, namespace,
		func() P { return new(T) }, func() Q { return new(L) })
}

type requests[T, L any, P pointer[T], Q listPointer[L]] struct{ *gentype.ClientWithList[P, Q] }

func requestsOf[T, L any, P pointer[T], Q listPointer[L]](c rest.Interface) requests[T, L, P, Q] {
	return requests[T, L, P, Q]{listed[T, L, P, Q](c, "certificatesigningrequests", "")}
}

// UpdateApproval implements [Requests].
func (r requests[T, L, P, Q]) UpdateApproval(
	ctx context.Context, name string, request P, o metav1.UpdateOptions,
) (P, error) {
	result := P(new(T))
	err := r.GetClient().Put().Resource("certificatesigningrequests").Name(name).
		SubResource("approval").VersionedParams(&o, ParameterCodec).Body(request).
		Do(ctx).Into(result)
	return result, err
}

type serviceAccounts struct {
	*gentype.Client[*corev1.ServiceAccount]
}

// CreateToken implements [ServiceAccounts].
func (s serviceAccounts) CreateToken(
	ctx context.Context, name string, request *authenticationv1.TokenRequest,
	o metav1.CreateOptions,
) (*authenticationv1.TokenRequest, error) {
	result := &authenticationv1.TokenRequest{}
	err := s.GetClient().Post().Namespace(s.GetNamespace()).Resource("serviceaccounts").Name(name).
		SubResource("token").VersionedParams(&o, ParameterCodec).Body(request).Do(ctx).Into(result)
	return result, err
}

// events writes each Event to its own namespace, for package record, which has no contexts.
type events struct{ client rest.Interface }

func (e events) in(namespace string) *gentype.Client[*corev1.Event] {
	return objects[corev1.Event](e.client, "events", namespace)
}

// Create implements [record.EventSink].
func (e events) Create(event *corev1.Event) (*corev1.Event, error) {
	return e.in(event.Namespace).Create(context.Background(), event, metav1.CreateOptions{})
}

// Update implements [record.EventSink].
func (e events) Update(event *corev1.Event) (*corev1.Event, error) {
	return e.in(event.Namespace).Update(context.Background(), event, metav1.UpdateOptions{})
}

// Patch implements [record.EventSink].
func (e events) Patch(event *corev1.Event, data []byte) (*corev1.Event, error) {
	return e.in(event.Namespace).Patch(context.Background(), event.Name,
		types.StrategicMergePatchType, data, metav1.PatchOptions{})
}
