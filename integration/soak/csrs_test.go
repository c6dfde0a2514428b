package soak

import (
	"context"
	"fmt"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// csrs are CertificateSigningRequests of one pod, as Calico's init container makes them. It is a
// [kind].
type csrs struct {
	pod   testenv.Pod
	admin kubernetes.Interface
	spoil spoiling
}

// A spoiling returns the object to create, for the request with this number.
type spoiling func(number int, asking *calico.InitContainer) (
	*certificatesv1.CertificateSigningRequest, error)

// good changes nothing.
func good(_ int, asking *calico.InitContainer) (*certificatesv1.CertificateSigningRequest, error) {
	return asking.Object()
}

// newBatch returns a batch of good requests of a new pod.
func (s *fixture) newBatch(t *testing.T) *batch { return s.newSpoiledBatch(t, good) }

// newSpoiledBatch returns a batch of requests of a new pod.
func (s *fixture) newSpoiledBatch(t *testing.T, spoil spoiling) *batch {
	t.Helper()
	pod, err := s.NewPod(t.Context(), node(), s.NextIP())
	must.OK(t, err)
	return s.batchOf(t, pod, spoil)
}

// batchOf returns a batch of requests of the pod. They are deleted when the test ends.
func (s *fixture) batchOf(t *testing.T, pod testenv.Pod, spoil spoiling) *batch {
	t.Helper()
	t.Cleanup(func() { must.OK(t, s.Cluster.DeleteRequests(context.Background())) })
	return newBatch(csrs{pod, s.admin(t), spoil})
}

// admin returns a client that may do anything.
func (s *fixture) admin(t *testing.T) kubernetes.Interface {
	t.Helper()
	config := s.Cluster.Config()
	config.ContentType = "application/vnd.kubernetes.protobuf"
	admin, err := kubernetes.NewForConfig(config)
	must.OK(t, err)
	return admin
}

func (k csrs) create(ctx context.Context, number int) (metav1.Object, error) {
	asking := k.pod.InitContainer(node())
	asking.SecretName = fmt.Sprintf("batch-%d", number)
	csr, err := k.spoil(number, &asking)
	if err != nil {
		return nil, err
	}
	return k.pod.Requests().Create(ctx, csr, metav1.CreateOptions{})
}

func (k csrs) list(ctx context.Context) (all []metav1.Object, err error) {
	list, err := k.admin.CertificatesV1().CertificateSigningRequests().List(ctx,
		metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		all = append(all, &list.Items[i])
	}
	return all, nil
}

func (k csrs) answer(request any) answer {
	csr := request.(*certificatesv1.CertificateSigningRequest)
	a := answer{name: csr.Name, conditions: len(csr.Status.Conditions),
		chain: csr.Status.Certificate}
	for _, c := range csr.Status.Conditions {
		switch is := c.Status == corev1.ConditionTrue; c.Type {
		case certificatesv1.CertificateApproved:
			a.issued = is && len(a.chain) > 0
		case certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
			a.refused = is
		}
	}
	return a
}

func (k csrs) informer() cache.SharedIndexInformer {
	return informers.NewSharedInformerFactory(k.admin, 0).Certificates().V1().
		CertificateSigningRequests().Informer()
}
