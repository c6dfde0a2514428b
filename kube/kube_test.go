package kube

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/internal/must"
	"hsm-signer/kube/csr"
	"hsm-signer/kube/request"
	"hsm-signer/policy"
)

// What the loop does is tested against a real API server, in the module "integration".

func condition(
	kind certificatesv1.RequestConditionType, status corev1.ConditionStatus,
) certificatesv1.CertificateSigningRequestCondition {
	return certificatesv1.CertificateSigningRequestCondition{Type: kind, Status: status}
}

// newCSR returns a request for the signer.
func newCSR(
	signer string, change func(*certificatesv1.CertificateSigningRequest),
) *certificatesv1.CertificateSigningRequest {
	made := &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{
			Name: "n", UID: "u", ResourceVersion: "7", Labels: map[string]string{"a": "b"},
			Annotations: map[string]string{"c": "d"},
		},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: signer, Username: "me", Request: []byte("r"),
		},
	}
	if change != nil {
		change(made)
	}
	return made
}

// apiOf returns the API of the controller.
func apiOf(c *Controller) *csr.API { return c.requests.Load().API.(*csr.API) }

// What a decision may see of a pod is taken from it, with what an address is worth.
func TestFactsOfAPod(t *testing.T) {
	got := podOf(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p", UID: "u"},
		Spec:       corev1.PodSpec{ServiceAccountName: "sa", NodeName: "n-1", HostNetwork: true},
		Status:     corev1.PodStatus{Phase: corev1.PodFailed, PodIP: "10.0.0.7"},
	})
	want := policy.Pod{
		Namespace: "n", Name: "p", UID: "u", ServiceAccount: "sa", Node: "n-1", HostNetwork: true,
		Finished: true,
		IPs:      []netip.Addr{netip.MustParseAddr("10.0.0.7")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v; want %+v", got, want)
	}
}

// A request that no answer is right for is kept by the same name until it is deleted, and is never
// processed again.
func TestIgnoredRequestIsNotTakenUp(t *testing.T) {
	for _, mode := range []Mode{Approve, Shadow} {
		c, _ := withStore(t, &remembering{}, func() bool { return true })
		c.Mode = mode
		api, store := apiOf(c), &store{Store: cache.NewStore(cache.MetaNamespaceKeyFunc)}
		store.added, store.updated, store.deleted = c.added, c.updated, c.deleted
		long := newCSR("example.com/a", func(r *certificatesv1.CertificateSigningRequest) {
			r.Name = strings.Repeat("x", 400<<10)
		})
		api.Client = &storing{object: long}
		one := func() any {
			page, err := api.List(t.Context(), metav1.ListOptions{})
			must.OK(t, err)
			return page.Items[0]
		}
		must.OK(t, errors.Join(store.Add(one()), store.Update(one())))
		kept := store.List()
		if len(kept) != 1 || c.serves(kept[0].(request.Object)) || c.queue.Len() != 0 {
			t.Errorf("%s: %d are kept, %d are taken up", mode, len(kept), c.queue.Len())
		}
		if err := store.Delete(one()); err != nil || len(store.List()) > 0 {
			t.Errorf("%s: %d are left: %v", mode, len(store.List()), err)
		}
	}
}
