// Package fake is a client of a made-up API server, for tests.
//
// Duty: answer calls from client-go's fake clientset, whose reactors a test may set.
//
// Contract: a call that no test makes ends with a panic.
package fake

import (
	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"hsm-signer/kube/clientset"
)

// A Clientset is client-go's, as this product calls it.
type Clientset struct {
	clientset.Interface // nil
	*fake.Clientset
}

// New returns a client of a server with these objects.
func New(objects ...runtime.Object) Clientset {
	return Clientset{Clientset: fake.NewClientset(objects...)}
}

// Pods implements [clientset.Interface].
func (c Clientset) Pods(namespace string) clientset.Pods { return c.CoreV1().Pods(namespace) }

// Leases implements [clientset.Interface].
func (c Clientset) Leases(namespace string) clientset.Leases {
	return c.CoordinationV1().Leases(namespace)
}

// CertificateSigningRequests implements [clientset.Interface].
func (c Clientset) CertificateSigningRequests() clientset.Requests[
	*certificatesv1.CertificateSigningRequest, *certificatesv1.CertificateSigningRequestList] {
	return c.CertificatesV1().CertificateSigningRequests()
}
