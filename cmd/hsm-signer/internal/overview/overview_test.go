package overview

import (
	"encoding/pem"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/credential"
	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/health"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/status"
	"hsm-signer/hsm"
	"hsm-signer/internal/must"
	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/kube/pace"
	"hsm-signer/policy"
)

// testStats are the sessions with the token.
type testStats struct{ sessions hsm.Sessions }

func (s *testStats) Stats() hsm.Stats { return hsm.Stats{Sessions: s.sessions} }

// notFound is a watch that has found nothing.
type notFound struct{}

func (notFound) Report() expiry.Report { return expiry.Report{} }

// testController watches requests, has all permissions, and leads without an election, unless its
// fields say otherwise.
type testController struct {
	stands     bool   // by
	leader     string // of many
	pace       pace.State
	cleanFault error
	open       kube.Open
}

func (c *testController) Ready() error        { return nil }
func (c *testController) Permitted() error    { return nil }
func (c *testController) Leads() bool         { return !c.stands }
func (c *testController) Leader() string      { return c.leader }
func (c *testController) Open() kube.Open     { return c.open }
func (c *testController) Pace() pace.State    { return c.pace }
func (c *testController) CleanUpFault() error { return c.cleanFault }

// A testPart of the process is well unless it has a fault. It is a file with a mistake, a journal,
// or a credential, too.
type testPart struct{ fault error }

func (p testPart) Fault() error                { return p.fault }
func (p testPart) Refusal() error              { return p.fault }
func (testPart) State() string                 { return "in force x" }
func (testPart) Expiries() []credential.Expiry { return nil }

// A testJournal is well.
type testJournal struct{}

func (testJournal) State() error     { return nil }
func (testJournal) Suspicion() error { return nil }

// A testIssuer issues under that CA.
type testIssuer struct{ ca *issuer.CA }

func (i testIssuer) CA() *issuer.CA { return i.ca }

// noOtherKey is that without a rotation.
type noOtherKey struct{}

func (noOtherKey) Fault() (exists bool, err error) { return false, nil }

// newTestPage is of one that signs, is well, and leads without an election.
func newTestPage(t *testing.T) *Overview {
	t.Helper()
	c, is := &testController{}, testIssuer{must.Value(issuer.ParseCA(pem.EncodeToMemory(
		&pem.Block{Type: "CERTIFICATE", Bytes: fixture.NewCA(t).Certificate.Raw})))(t)}
	return &Overview{
		Config: &config.Config{Mode: kube.Approve,
			SignerNames: []string{"example.com/calico"}},
		Health: &health.Health{Controller: c, Credential: testPart{}, Policy: testPart{},
			CA: testPart{},
			Signing: &health.Signing{Token: testPart{}, Other: noOtherKey{}, Issuer: is,
				Journal: testJournal{}, Witness: testJournal{}, Phase: testFacts(nil)}},
		Activity: &Activity{}, Started: time.Now(), Controller: c,
		Signing: &Signing{
			Keys: &testStats{hsm.Sessions{Open: 3, InUse: 2, Most: 16}}, Issuer: is,
			Expiry: notFound{}, Stuck: stuckReport{}, Phase: testFacts(nil),
		},
	}
}

// testFacts are what is said of a rotation of the CA.
type testFacts []string

func (f testFacts) Facts() []string { return f }
func (testFacts) Unclear() error    { return nil }
func (testFacts) Summary() string   { return "" }

func TestStatusPageInARotation(t *testing.T) {
	s := newTestPage(t)
	s.Signing.Phase = testFacts{"trusted since noon", "certificates in use: 2"}
	if p := s.Page(); !slices.Equal(p.Rotation, s.Signing.Phase.Facts()) {
		t.Errorf("%q", p.Rotation)
	}
}

func TestStatusPageOfOneThatStandsBy(t *testing.T) {
	s := newTestPage(t)
	if p := s.Page(); !p.Leads || p.Leader != "" || p.CA == nil ||
		p.Sessions != "3 PKCS#11 sessions open; 2 of at most 16 sign" {
		t.Errorf("alone: %+v", p)
	}
	s.Controller.(*testController).stands = true
	s.Controller.(*testController).leader, s.Identity = "other_1", "this_2"
	s.Signing.Keys = &testStats{}
	if p := s.Page(); p.Leads || p.Leader != "other_1" || p.Identity != "this_2" ||
		p.Sessions != "not connected" {
		t.Errorf("one that stands by: %+v", p)
	}
}

// A shadow has no token, no CA and no journal, and no one tells it who leads.
func TestStatusPageOfAShadow(t *testing.T) {
	s := newTestPage(t)
	s.Config.Mode = kube.Shadow
	s.Signing, s.Health.Signing = nil, nil
	s.Activity.Report(kube.Outcome{UID: "1", Name: "csr-1", Result: kube.ResultWouldIssue,
		At: time.Now()})
	p := s.Page()
	if p.CA != nil || p.Token != "" || p.Sessions != "" || p.Mode != "shadow" ||
		len(p.Decisions) != 1 || !p.Decisions[0].Good {
		t.Errorf("%+v", p)
	}
	for _, part := range p.Parts {
		if part.Fault != "" || strings.Contains("HSM CA Journal", part.Name) {
			t.Errorf("a shadow has the part %+v", part)
		}
	}
}

// Certificates that ought not to be are a hint on the page, and a number for the alert.
func TestStrangeCertificatesAreAHint(t *testing.T) {
	s := newTestPage(t)
	m := metrics.New()
	for _, step := range []struct {
		origins map[kube.Issuance]int
		hint    bool
	}{
		{nil, false},
		{map[kube.Issuance]int{kube.Own: 2, kube.OtherJournal: 1}, false},
		{map[kube.Issuance]int{kube.Foreign: 1}, true},
		{map[kube.Issuance]int{kube.Unrecorded: 1}, true},
		{nil, false},
	} {
		for _, sink := range []kube.Sink{m, s.Activity} {
			sink.Report(kube.Census{Certificates: step.origins})
		}
		hints := strings.Join(s.Page().Hints, "\n")
		if strings.Contains(hints, "HSMSignerForeignCertificate") != step.hint ||
			strings.Contains(fixture.Scrape(m.Handler()),
				"hsm_signer_certificates_in_cluster{") != (step.origins != nil) {
			t.Errorf("%v: %q", step.origins, hints)
		}
	}
}

// Too many requests are a hint on the page, and so is a permission that is missing to delete them.
// While the number is not known, the metric is absent.
func TestManyRequestsAreAHint(t *testing.T) {
	s, m := newTestPage(t), metrics.New()
	for _, step := range []struct {
		n      int
		known  bool
		hint   string
		metric string
	}{
		{0, false, "", ""},
		{2000, true, "", "hsm_signer_requests_in_cluster 2000\n"},
		{6001, true,
			"6001 certificate requests, of all signers, are in the cluster. Each of Calico's init " +
				"containers reads all of them first, which may take 90 of its 90 seconds",
			"hsm_signer_requests_in_cluster 6001\n"},
		{0, false, "", ""},
	} {
		for _, sink := range []kube.Sink{m, s.Activity} {
			sink.Report(kube.RequestCount{Requests: step.n, Known: step.known})
		}
		hints, metrics := strings.Join(s.cleanUpHints(), "\n"), fixture.Scrape(m.Handler())
		if !strings.HasPrefix(hints, step.hint) || (hints == "") != (step.hint == "") {
			t.Errorf("%+v: %q", step, hints)
		}
		if !strings.Contains(metrics, step.metric) ||
			strings.Contains(metrics, "\nhsm_signer_requests_in_cluster ") != step.known {
			t.Errorf("%+v: %s", step, metrics)
		}
	}
	s.Controller.(*testController).cleanFault = errors.New("may not delete")
	if hints := s.Page().Hints; !strings.Contains(strings.Join(hints, "\n"),
		"left to Kubernetes: may not delete") {
		t.Errorf("%q", hints)
	}
}

// The pods of one workload are shown together; those that are dark are counted, and their workload
// comes first.
func TestPodsThatAreDarkComeFirst(t *testing.T) {
	now := time.Now()
	pod := func(name, owner string, left time.Duration) expiry.Endangered {
		return expiry.Endangered{
			Certificate: expiry.Certificate{NotAfter: now.Add(left)},
			Pod: kube.LivePod{Pod: policy.Pod{Namespace: "a", Name: name},
				Owner: kube.Workload{Kind: "DaemonSet", Namespace: "a", Name: owner}},
		}
	}
	all := endingOf([]expiry.Endangered{pod("x", "one", -time.Hour), pod("y", "two", time.Minute),
		pod("x", "one", time.Hour), pod("z", "one", time.Hour)}, now)
	if len(all) != 2 || all[0].Workload != "DaemonSet a/one" || all[0].Dark != 1 ||
		!slices.Equal(all[0].Pods, []string{"a/x", "a/z"}) || all[1].Dark != 0 {
		t.Errorf("%+v", all)
	}
}

// What waits is shown with its reasons, and is a hint when it waits for too long.
func TestOpenRequestsAreShown(t *testing.T) {
	s := newTestPage(t)
	c := s.Controller.(*testController)
	if p := s.Page(); p.Open != nil {
		t.Errorf("they are not known: %+v", p.Open)
	}
	for waited, hint := range map[time.Duration]bool{0: false, 15 * time.Second: false,
		16 * time.Second: true} {
		c.open = kube.Open{Known: true, Unanswered: waited,
			States: map[kube.OpenState]int{kube.OpenFailing: 2, kube.OpenHeld: 1}}
		p := s.Page()
		if !slices.Equal(p.Open.States, []status.OpenState{
			{Name: "held back for slow clients", Count: 1}, {Name: "failing", Count: 2, Bad: true},
		}) || strings.Contains(strings.Join(p.Hints, "\n"), "HSMSignerUnanswered") != hint {
			t.Errorf("%s: %+v, %q", waited, p.Open, p.Hints)
		}
	}
}

// Requests of running pods that the policy refuses are shown, and what to do.
func TestHeldRefusalsAreShown(t *testing.T) {
	s := newTestPage(t)
	for held, hint := range map[int]bool{0: false, 2: true} {
		s.Controller.(*testController).open = kube.Open{Known: true,
			States: map[kube.OpenState]int{kube.OpenRefusalHeld: held}}
		p := s.Page()
		if strings.Contains(strings.Join(p.Hints, "\n"), "2 requests held open") != hint ||
			slices.Contains(p.Open.States, status.OpenState{Name: "refused, but held open",
				Count: 2, Bad: true}) != hint {
			t.Errorf("%d held: %+v, %q", held, p.Open, p.Hints)
		}
	}
}

// Since when a part is at fault is shown, and so is the policy's name.
func TestSinceIsShown(t *testing.T) {
	s := newTestPage(t)
	s.Config.PolicyFile = "/etc/p.yaml"
	s.Health.Policy, s.Health.Signing.Token = testPart{errors.New("line 3")},
		testPart{errors.New("gone")}
	s.Controller.(*testController).stands = true
	p := s.Page()
	if p.Policy != "/etc/p.yaml, in force x" || p.LostSince.IsZero() ||
		!strings.Contains(strings.Join(p.Hints, "\n"), "line 3 (since 20") {
		t.Errorf("%+v", p)
	}
	for _, part := range p.Parts {
		if part.Since.IsZero() != (part.Fault == "") {
			t.Errorf("%+v", part)
		}
	}
}

func TestPaceInWords(t *testing.T) {
	for want, state := range map[string]pace.State{
		"at once (few clients)": {Rate: math.Inf(1),
			Reason: pace.ReasonFew},
		"1 a second, 200 held back (many clients)": {Rate: 0.4, Waiting: 200,
			Reason: pace.ReasonWatchers},
		"none for the moment, 3 held back (slow API server)": {Waiting: 3,
			Reason: pace.ReasonSlow},
		"none for the moment, 7 held back (many new clients)": {Waiting: 7,
			Reason: pace.ReasonArrivals},
	} {
		if got := paceInWords(state); got != want {
			t.Errorf("%+v: %q, want %q", state, got, want)
		}
	}
}
