package issuer

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

const thrifty = `
version: 1
budget: {total: 10, perNamespace: 100%, perServiceAccount: 50%, perPod: 2}
rules:
  - name: all
    from: {serviceAccounts: ["ns/*", "other/*"]}
    grant:
      dnsNames: [one]
      keys: [ecdsa-p256]
      usages: [server auth, client auth, digital signature, key encipherment, key agreement]
`

// A spender asks for one certificate after another, in an hour that is the test's to move.
type spender struct {
	t      *testing.T
	policy *policy.Policy
	issuer *Issuer
	now    time.Time
	asked  int
}

func newSpender(t *testing.T) *spender {
	t.Helper()
	s := &spender{t: t, policy: parsePolicy(t, thrifty), now: time.Now()}
	s.issuer = newCA(t, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)).issuer(t)
	s.issuer.now = func() time.Time { return s.now }
	return s
}

// ask reserves one more certificate and returns whose budget was spent, if any was.
func (s *spender) ask(account, pod string) string {
	s.t.Helper()
	s.asked++
	return s.askFor(account, pod, fmt.Sprintf("request-%d", s.asked))
}

func (s *spender) askFor(account, pod, uid string) string {
	s.t.Helper()
	g := grantTo(s.t, s.policy, account, pod, uid, 0, pkcs10test.Request{DNSNames: []string{"one"}})
	_, instead, err := s.issuer.Prepare(s.t.Context(), g)
	if err != nil {
		s.t.Fatal(err)
	}
	if spent := over(instead); spent != nil {
		return spent.Whose
	}
	return ""
}

func TestBudgetOfAPod(t *testing.T) {
	s := newSpender(t)
	for i, want := range []string{"", "", `pod "a"`, `pod "a"`} {
		if got := s.ask("ns:sa", "a"); got != want {
			t.Errorf("certificate %d: over %q, want %q", i, got, want)
		}
	}
	if got := s.ask("ns:sa", "b"); got != "" {
		t.Errorf("another pod is over %q", got)
	}
	s.now = s.now.Add(policy.BudgetWindow)
	if got := s.ask("ns:sa", "a"); got != "" {
		t.Errorf("an hour later the pod is over %q", got)
	}
}

func TestARequestIsCountedOnce(t *testing.T) {
	s := newSpender(t)
	for range 10 {
		if got := s.askFor("ns:sa", "a", "the same"); got != "" {
			t.Fatalf("over %q", got)
		}
	}
	if got := s.ask("ns:sa", "a"); got != "" {
		t.Errorf("the second request is over %q", got)
	}
}

func TestAServiceAccountLeavesRoomForOthers(t *testing.T) {
	s := newSpender(t)
	for i := range 5 {
		if got := s.ask("ns:greedy", fmt.Sprint("g", i)); got != "" {
			t.Fatalf("certificate %d is over %q", i, got)
		}
	}
	if got, want := s.ask("ns:greedy", "g5"),
		`account "system:serviceaccount:ns:greedy"`; got != want {
		t.Errorf("over %q, want %q", got, want)
	}
	for i := range 5 {
		if got := s.ask("ns:modest", fmt.Sprint("m", i)); got != "" {
			t.Errorf("another service account is over %q", got)
		}
	}
	if got := s.ask("other:third", "t"); got != "all together" {
		t.Errorf("over %q, want the budget of all together", got)
	}
}

// A restart gives nobody another hour's worth: what the journal knows of the last hour is counted.
func TestBudgetOutlivesARestart(t *testing.T) {
	made := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
	ca, err := ParseCA(made.chain)
	must.OK(t, err)
	dir := t.TempDir()
	start := func() (*spender, *journal.Writer) {
		t.Helper()
		j, err := journal.Open(dir, journal.Options{Version: "test", CA: ca.Certificate()})
		must.OK(t, err)
		s := &spender{t: t, policy: parsePolicy(t, thrifty), now: time.Now()}
		if s.issuer, err = New(Authority{CA: ca, Key: softKey{key: made.key}}, j); err != nil {
			t.Fatal(err)
		}
		s.issuer.now = func() time.Time { return s.now }
		return s, j
	}
	s, j := start()
	for _, uid := range []string{"first", "second"} {
		if got := s.askFor("ns:sa", "a", uid); got != "" {
			t.Fatalf("over %q", got)
		}
		issue(t, s.issuer,
			grantTo(t, s.policy, "ns:sa", "a", uid, 0,
				pkcs10test.Request{DNSNames: []string{"one"}}))
	}
	must.OK(t, j.Close())
	s, j = start()
	if got := s.askFor("ns:sa", "a", "third"); got != `pod "a"` {
		t.Errorf("after a restart it is over %q", got)
	}
	if got := s.askFor("ns:sa", "b", "fourth"); got != "" {
		t.Errorf("another pod is over %q", got)
	}
	s.now = s.now.Add(policy.BudgetWindow)
	if got := s.askFor("ns:sa", "a", "third"); got != "" {
		t.Errorf("an hour later it is over %q", got)
	}
	must.OK(t, j.Close())
	if journal.RecentWindow != policy.BudgetWindow {
		t.Error("the journal tells of another time than budgets are for")
	}
}

// A budget comes before what costs, and a request that cannot be issued is counted too.
func TestLintedWithinTheBudgetAlone(t *testing.T) {
	s := newSpender(t)
	s.issuer, _ = constrained(t, "elsewhere")
	for i, want := range []bool{false, false, true} {
		g := grantTo(t, s.policy, "ns:sa", "a", fmt.Sprint("request-", i), 0,
			pkcs10test.Request{DNSNames: []string{"one"}})
		_, instead, err := s.issuer.Prepare(t.Context(), g)
		if _, refused := instead.(*policy.Refusal); (over(instead) != nil) != want ||
			refused == want || err != nil {
			t.Errorf("request %d: %v, %v", i, instead, err)
		}
	}
}

// A username may hold anything; an event is read in terminals.
func TestOverBudgetIsPlainText(t *testing.T) {
	p := parsePolicy(t, `
version: 1
budget: {total: 1}
rules:
  - name: all
    from: {users: ["*"], pod: none}
    grant: {dnsNames: [one], keys: [ecdsa-p256], usages: [digital signature]}
`)
	i := newSpender(t).issuer
	var last policy.Verdict
	for _, uid := range []string{"first", "second"} {
		g, granted := p.Decide(policy.NewRequest(policy.Submission{
			UID: uid, PEM: pkcs10test.Request{DNSNames: []string{"one"}}.PEM(t),
			Usages:    []policy.Usage{policy.DigitalSignature},
			Requester: policy.Requester{Username: "oidc:\x1b[2Jx\nFake: line"},
		}), policy.Facts{}).(*policy.Grant)
		if !granted {
			t.Fatal("not granted")
		}
		var err error
		if _, last, err = i.Prepare(t.Context(), g); err != nil {
			t.Fatal(err)
		}
	}
	if waiting, is := last.(*policy.Waiting); !is ||
		!strings.Contains(waiting.Missing,
			`the budget of account "oidc:\x1b[2Jx\nFake: line", 1 certificates`) {
		t.Errorf("%v", last)
	}
}

func TestOverBudgetSaysUntilWhen(t *testing.T) {
	s := newSpender(t)
	s.ask("ns:sa", "a")
	first := s.now
	s.now = s.now.Add(10 * time.Minute)
	s.ask("ns:sa", "a")
	g := grantTo(t, s.policy, "ns:sa", "a", "third", 0,
		pkcs10test.Request{DNSNames: []string{"one"}})
	_, instead, err := s.issuer.Prepare(t.Context(), g)
	if spent := over(instead); err != nil || spent == nil ||
		!spent.Until.Equal(first.Add(policy.BudgetWindow)) || spent.Limit != 2 {
		t.Errorf("%v, %v", instead, err)
	}
}
