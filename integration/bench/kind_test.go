package bench

import (
	"context"
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// A kind is a kind of certificate request.
type kind struct {
	namespace, resource string // without a namespace, requests belong to the cluster
	prefix              string // of the names of requests
	// newRequester creates pod i, which gets certificates.
	newRequester func(f *fixture, ctx context.Context, i int) (requester, error)
}

// The kinds of requests.
var (
	csrs = kind{"", "certificatesigningrequests", "node-certs:requester-",
		(*fixture).newCalicoRequester}
	pcrs = kind{podNamespace, "podcertificaterequests", "requester-", (*fixture).newPodRequester}
)

// An object is a certificate request of either kind.
type object interface {
	metav1.Object
	runtime.Object
}

// hasCertificate reports whether the request was answered with a certificate.
func hasCertificate(r object) bool {
	switch r := r.(type) {
	case *certificatesv1.CertificateSigningRequest:
		return len(r.Status.Certificate) > 0
	case *certificatesv1.PodCertificateRequest:
		return r.Status.CertificateChain != ""
	}
	return false
}

// nameOf returns the name of request i.
func (k kind) nameOf(i int) string { return fmt.Sprint(k.prefix, i) }

// of lists and watches the requests of a signer name.
func (k kind) of(client kubernetes.Interface, signer string) *cache.ListWatch {
	return cache.NewListWatchFromClient(client.CertificatesV1().RESTClient(), k.resource,
		k.namespace, fields.OneTermEqualSelector("spec.signerName", signer))
}

// all returns a call on the collection of all requests.
func (k kind) all(call *rest.Request) *rest.Request {
	return call.NamespaceIfScoped(k.namespace, k.namespace != "").Resource(k.resource)
}

// url is where requests are created.
func (k kind) url(client kubernetes.Interface) string {
	return k.all(client.CertificatesV1().RESTClient().Post()).URL().String()
}

// deleteAll deletes every request.
func (k kind) deleteAll(ctx context.Context, client kubernetes.Interface) error {
	return k.all(client.CertificatesV1().RESTClient().Delete()).
		Body(metav1.NewDeleteOptions(0)).Do(ctx).Error()
}
