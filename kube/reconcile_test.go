package kube

import (
	"context"
	"maps"
	"testing"

	"github.com/hashicorp/go-hclog"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/policy"
)

// remembering is an issuer that has begun some requests; what the loop tells it of each is kept. A real
// one would have to be killed at the right instruction for each case.
type remembering struct {
	unfinished []string
	told       map[string]string
}

func (*remembering) Reserve(context.Context, *policy.Grant) error { return nil }

func (*remembering) Issue(context.Context, *policy.Grant) ([]byte, error) { return nil, nil }

func (r *remembering) Published(_ context.Context, uid string) error {
	r.told[uid] = "published"
	return nil
}

func (r *remembering) Unfinished() []string { return r.unfinished }

func (*remembering) Made(_ string, chain []byte) bool { return string(chain) == "own" }

func (r *remembering) Orphaned(_ context.Context, uid, why string) error {
	r.told[uid] = "orphaned: " + why
	return nil
}

func TestWhatBecameOfWhatWasBegun(t *testing.T) {
	issuer := &remembering{unfinished: []string{"gone", "taken", "foreign", "denied", "waiting"}, told: map[string]string{}}
	c := New(Config{SignerNames: []string{"example.com/a"}, Mode: Shadow, Issuer: issuer, Logger: hclog.NewNullLogger()})
	c.Mode = Approve
	store := cache.NewStore(cache.MetaNamespaceKeyFunc)
	add := func(uid, certificate string, conditions ...certificatesv1.CertificateSigningRequestCondition) {
		err := store.Add(&certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{Name: uid, UID: types.UID(uid)},
			Spec:       certificatesv1.CertificateSigningRequestSpec{SignerName: "example.com/a"},
			Status:     certificatesv1.CertificateSigningRequestStatus{Certificate: []byte(certificate), Conditions: conditions},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	add("taken", "own")
	add("foreign", "another")
	add("denied", "", condition(certificatesv1.CertificateDenied, corev1.ConditionTrue))
	add("waiting", "", condition(certificatesv1.CertificateApproved, corev1.ConditionTrue))
	complete := false
	c.requests.Store(&requests{stores: []cache.Store{store}, synced: []cache.InformerSynced{func() bool { return complete }}})

	c.reconcileOnce(t.Context())
	if len(issuer.told) > 0 {
		t.Errorf("told %v before all requests are known", issuer.told)
	}
	complete = true
	c.reconcileOnce(t.Context())
	want := map[string]string{
		"gone":    "orphaned: the request is gone",
		"taken":   "published",
		"foreign": "orphaned: the request has a certificate that is not this one",
		"denied":  "orphaned: the request was denied or has failed",
	}
	if !maps.Equal(issuer.told, want) || c.queue.Len() != 1 {
		t.Errorf("told %v, and %d are taken up again; want %v, and the one that waits", issuer.told, c.queue.Len(), want)
	}
}
