package kube

import (
	"context"
	"errors"
	"maps"
	"testing"

	"github.com/hashicorp/go-hclog"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"hsm-signer/internal/must"
	"hsm-signer/kube/csr"
	"hsm-signer/kube/lease"
	"hsm-signer/policy"
)

// remembering is an issuer that has started some requests; what the loop tells it of each is kept.
// A real one would have to be killed at the right instruction for each case.
type remembering struct {
	unfinished []policy.Submission
	told       map[string]string
}

func (*remembering) Prepare(context.Context, *policy.Grant) (Prepared, policy.Verdict, error) {
	return prepared("own"), nil, nil
}

// prepared is a certificate that needs no signature.
type prepared string

func (p prepared) Issue(context.Context) ([]byte, error) { return []byte(p), nil }

func (r *remembering) Published(_ context.Context, uid string) error {
	r.told[uid] = "published"
	return nil
}

func (r *remembering) Unfinished() []policy.Submission { return r.unfinished }

func (*remembering) Made(_ string, chain []byte) (bool, error) {
	if string(chain) == "unreadable" {
		return false, errors.New("the journal cannot be read")
	}
	return string(chain) == "own", nil
}

func (*remembering) Signed(chain []byte) (byCA, ours bool) {
	return string(chain) != "foreign", string(chain) == "unrecorded"
}

func (r *remembering) Orphaned(_ context.Context, uid, why string) error {
	r.told[uid] = "orphaned: " + why
	return nil
}

func (r *remembering) Unconfirmed(_ context.Context, uid, why string) error {
	r.told[uid] = "unconfirmed: " + why
	return nil
}

// counting keeps the last census and counts deletions.
type counting struct {
	certificates map[Issuance]int
	deleted      int
}

func (o *counting) Report(r Report) {
	switch r := r.(type) {
	case Census:
		o.certificates = r.Certificates
	case Deletion:
		o.deleted++
	}
}

// withStore returns a controller and what adds requests to its store, by UID.
func withStore(t *testing.T, issuer Issuer, synced func() bool) (*Controller,
	func(uid, certificate string,
		conditions ...certificatesv1.CertificateSigningRequestCondition)) {
	t.Helper()
	kind := csr.Kind{SignerNames: []string{"example.com/a"}}
	c := New(Config{
		Kind: kind, SignerNames: kind.SignerNames, Mode: Shadow, Issuer: issuer,
		Sinks: []Sink{&counting{}}, Logger: hclog.NewNullLogger(),
	})
	c.Mode = Approve
	store := cache.NewStore(cache.MetaNamespaceKeyFunc)
	api := &csr.API{Kind: kind}
	c.requests.Store(&requests{API: api, stores: []cache.Store{store},
		synced: []cache.InformerSynced{synced}})
	return c, func(uid, certificate string,
		conditions ...certificatesv1.CertificateSigningRequestCondition) {
		t.Helper()
		err := store.Add(api.Whole(&certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{Name: uid, UID: types.UID(uid)},
			Spec:       certificatesv1.CertificateSigningRequestSpec{SignerName: "example.com/a"},
			Status: certificatesv1.CertificateSigningRequestStatus{Certificate: []byte(
				certificate), Conditions: conditions},
		}))
		must.OK(t, err)
	}
}

// Each certificate in the cluster is classified by its issuer; of one that ought not to be there is
// one event, however often it is seen.
func TestIssuanceOfCertificates(t *testing.T) {
	c, add := withStore(t, &remembering{told: map[string]string{}}, func() bool { return true })
	events := record.NewFakeRecorder(16)
	c.events.recorder = events
	for _, certificate := range []string{"own", "another", "unrecorded", "foreign",
		"unreadable", ""} {
		add("with "+certificate, certificate)
	}
	want := map[Issuance]int{Own: 1, OtherJournal: 1, Unrecorded: 1, Foreign: 1}
	for range 3 {
		c.reconcileJournalOnce(t.Context())
		if got := c.Sinks[0].(*counting).certificates; !maps.Equal(got, want) {
			t.Errorf("%v; want %v", got, want)
		}
	}
	if n := len(events.Events); n != 2 {
		t.Errorf("%d events; want one for each of two certificates", n)
	}
	add("with own", "foreign") // v1beta1 lets it be replaced
	c.reconcileJournalOnce(t.Context())
	if n := len(events.Events); n != 3 {
		t.Errorf("%d events after a certificate was replaced", n)
	}
}

func TestWhatBecameOfWhatWasBegun(t *testing.T) {
	issuer := &remembering{told: map[string]string{}}
	for _, uid := range []string{"gone", "made again", "not in the store yet", "taken", "foreign",
		"denied", "waiting", "unknown"} {
		issuer.unfinished = append(issuer.unfinished,
			policy.Submission{UID: uid, Name: uid, SignerName: "example.com/a"})
	}
	issuer.unfinished = append(issuer.unfinished,
		policy.Submission{UID: "not watched", Name: "not watched",
			SignerName: "example.com/former"},
		policy.Submission{UID: "of a kind that is not served", Name: "namespace/name",
			SignerName: "example.com/a"})
	complete := false
	c, add := withStore(t, issuer, func() bool { return complete })
	add("taken", "own")
	add("foreign", "another")
	add("unknown", "unreadable")
	add("denied", "", condition(certificatesv1.CertificateDenied, corev1.ConditionTrue))
	add("waiting", "", condition(certificatesv1.CertificateApproved, corev1.ConditionTrue))

	apiOf(c).
		Client = having{uids: map[string]types.UID{"made again": "of another",
		"not in the store yet": "not in the store yet"}}

	c.reconcileJournalOnce(t.Context())
	if len(issuer.told) > 0 {
		t.Errorf("told %v before all requests are known", issuer.told)
	}
	complete = true
	c.reconcileJournalOnce(t.Context())
	want := map[string]string{
		"gone":       "unconfirmed: the request is gone",
		"made again": "unconfirmed: the request is gone",
		"taken":      "published",
		"foreign":    "unconfirmed: the request has a certificate that is not this one",
		"denied":     "orphaned: the request was denied or has failed",
	}
	if !maps.Equal(issuer.told, want) || c.queue.Len() != 2 {
		t.Errorf("told %v, and %d are taken up again; want %v, and the two that wait", issuer.told,
			c.queue.Len(), want)
	}
}

// A controller that does not lead finds out too the outcome of what is in its own journal, but
// takes up no request.
func TestStandbyResolvesItsOwnJournal(t *testing.T) {
	issuer := &remembering{told: map[string]string{}}
	for _, uid := range []string{"gone", "taken", "waiting"} {
		issuer.unfinished = append(issuer.unfinished,
			policy.Submission{UID: uid, Name: uid, SignerName: "example.com/a"})
	}
	c, add := withStore(t, issuer, func() bool { return true })
	c.election = lease.New(lease.Lease{}, nil, candidate{c}, c.Logger)
	apiOf(c).Client = having{}
	add("taken", "own")
	add("waiting", "", condition(certificatesv1.CertificateApproved, corev1.ConditionTrue))
	if !c.reconcileJournalOnce(t.Context()) {
		t.Error("it has not looked")
	}
	want := map[string]string{"gone": "unconfirmed: the request is gone", "taken": "published"}
	if !maps.Equal(issuer.told, want) || c.queue.Len() != 0 {
		t.Errorf("told %v, and %d are taken up; want %v, and none", issuer.told,
			c.queue.Len(), want)
	}
}

// having is an API server that has these requests: the UID of each, by its name.
type having struct {
	csr.Client
	uids map[string]types.UID
}

// Get reads a request.
func (h having) Get(_ context.Context, name string,
	_ metav1.GetOptions) (*certificatesv1.CertificateSigningRequest, error) {
	uid, is := h.uids[name]
	if !is {
		return nil,
			apierrors.NewNotFound(certificatesv1.Resource("certificatesigningrequests"), name)
	}
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: uid},
		Spec:       certificatesv1.CertificateSigningRequestSpec{SignerName: "example.com/a"},
		Status: certificatesv1.CertificateSigningRequestStatus{
			Conditions: []certificatesv1.CertificateSigningRequestCondition{
				condition(certificatesv1.CertificateApproved, corev1.ConditionTrue),
			},
		},
	}, nil
}
