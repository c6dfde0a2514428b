package issuer

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// tenants is a rule behind which everybody may stand.
const tenants = `
  - name: tenants
    from: {serviceAccounts: ["*/*"]}
    grant:
      dnsNames: ["{serviceAccount}.{namespace}.example.com"]
`

// builtInWith returns a built-in policy with more rules.
func builtInWith(t *testing.T, name, rules string) *policy.Policy {
	t.Helper()
	text, _ := policy.BuiltIn(name)
	return parsePolicy(t, string(text)+rules)
}

// pods ask for one component's certificate, as many as one likes.
type pods struct {
	policy    *policy.Policy
	request   *policy.Request
	namespace string
	account   string
}

func newPods(t *testing.T, p *policy.Policy, namespace, account string, names ...string) *pods {
	t.Helper()
	r := policy.NewRequest(policy.Submission{
		PEM:    pkcs10test.Request{DNSNames: names}.PEM(t),
		Usages: []policy.Usage{policy.ServerAuth, policy.DigitalSignature},
		Requester: policy.Requester{
			Username: "system:serviceaccount:" + namespace + ":" + account,
			Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace},
		},
	})
	return &pods{policy: p, request: r, namespace: namespace, account: account}
}

// ask reserves a certificate for another pod, and returns whose budget is spent if one is.
func (s *pods) ask(t *testing.T, b *budget, pod string, now time.Time) (over string) {
	t.Helper()
	live := policy.Pod{Namespace: s.namespace, Name: "p", UID: pod, ServiceAccount: s.account,
		IPs: []netip.Addr{podIP}}
	s.request.UID, s.request.Requester = "request of "+pod, s.request.Requester.Bound(live)
	query, _ := s.request.PodQuery()
	verdict := s.policy.Decide(s.request, query.Found(live))
	g, ok := verdict.(*policy.Grant)
	if !ok {
		t.Fatalf("%s/%s is not granted: %v", s.namespace, s.account, verdict)
	}
	if spent := b.reserve(g, now); spent != nil {
		return spent.Whose
	}
	return ""
}

// flood is an hour in which tenants were granted as much as there is, each namespace a little.
func flood(certificates int, now time.Time) (recent []journal.Recent) {
	for i := range certificates {
		namespace := fmt.Sprint("tenant-", i%1000)
		recent = append(recent, journal.Recent{
			At: now.Add(-time.Minute), UID: fmt.Sprint("tenant ", i), Rule: "tenants",
			Requester: policy.Requester{
				Username: "system:serviceaccount:" + namespace + ":web",
				Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace},
			},
		})
	}
	return recent
}

// With the budget that is built in, all nodes of a cluster of 5,000 restart twice in an hour, also
// when tenants behind a wildcard rule have taken all that is left to take.
func TestTenantsDoNotStarveCalicosNodes(t *testing.T) {
	const nodes, restarts = 5_000, 2
	for _, c := range []struct {
		profile  string
		requests func(t *testing.T, p *policy.Policy) []*pods // of each node
	}{
		{"calico", func(t *testing.T, p *policy.Policy) []*pods {
			return []*pods{newPods(t, p, "calico-system", "calico-node", "typha-client")}
		}},
		{"calico-enterprise", func(t *testing.T, p *policy.Policy) []*pods {
			return []*pods{newPods(t, p, "calico-system", "calico-node", "typha-client"),
				newPods(t, p, "calico-system", "calico-node", "calico-node-metrics")}
		}},
	} {
		t.Run(c.profile, func(t *testing.T) {
			p, now := builtInWith(t, c.profile, tenants), time.Now()
			limits := p.Budget()
			b := newBudget()
			b.begin(flood(limits.Shared()+limits.Rule("tenants").Reserve, now), now)
			tenant := newPods(t, p, "tenant-1", "web", "web.tenant-1.example.com")
			if over := tenant.ask(t, b, "one more",
				now); over != "all rules beyond what is reserved for each" {
				t.Errorf("one more of a tenant's is over %q", over)
			}
			granted := 0
			kinds := c.requests(t, p)
			for i := range nodes * restarts {
				for kind, node := range kinds {
					if over := node.ask(t, b, fmt.Sprint(kind, " ", i), now); over != "" {
						t.Fatalf("after %d certificates for nodes: over %q", granted, over)
					}
					granted++
				}
			}
			typha := newPods(t, p, "calico-system", "calico-typha", "typha-server")
			for i := range 50 {
				if over := typha.ask(t, b, fmt.Sprint("typha ", i), now); over != "" {
					t.Fatalf("Typha: over %q", over)
				}
			}
			t.Logf("%s: beside %d of tenants, %d for nodes: %s", c.profile,
				limits.Shared()+limits.Rule("tenants").Reserve, granted, limits)
		})
	}
}

// Without tenants, the other DaemonSets of Calico Enterprise have room in addition to two restarts
// of all nodes.
func TestLogCollectorsHaveRoomBesideTheNodes(t *testing.T) {
	p, now := builtInWith(t, "calico-enterprise", ""), time.Now()
	b := newBudget()
	for kind, daemons := range []*pods{
		newPods(t, p, "calico-system", "calico-node", "typha-client"),
		newPods(t, p, "calico-system", "calico-node", "calico-node-metrics"),
		newPods(t, p, "calico-system", "calico-fluent-bit", "calico-fluent-bit-tls"),
	} {
		for i := range 10_000 {
			if over := daemons.ask(t, b, fmt.Sprint(kind, " ", i), now); over != "" {
				t.Fatalf("%s, certificate %d: over %q", daemons.account, i, over)
			}
		}
	}
}

// small has a rule with a reserve, and one of everybody's.
const small = `version: 1
budget: {total: 10, perNamespace: 6, perServiceAccount: 50%}
defaults:
  grant:
    dnsNames: [one]
    keys: [ecdsa-p256]
    usages: [server auth, client auth, digital signature, key encipherment, key agreement]
rules:
  - name: nodes
    from: {serviceAccounts: [calico/node]}
    budget: {reserve: 4}
  - name: tenants
    from: {serviceAccounts: ["*/*"]}
    budget: {reserve: 1, limit: 5, perNamespace: 3}
`

func TestBudgetsOfNamespacesAndRules(t *testing.T) {
	p, now := parsePolicy(t, small), time.Now()
	b := newBudget()
	asked := 0
	ask := func(p *policy.Policy, who string) string {
		namespace, account, _ := strings.Cut(who, "/")
		asked++
		return newPods(t, p, namespace, account, "one").ask(t, b, fmt.Sprint(asked), now)
	}
	for _, step := range []struct{ who, over string }{
		{"a/x", ""}, {"a/y", ""}, {"a/z", ""}, {"a/x", `namespace "a" in rule "tenants"`},
		{"a/other", `namespace "a" in rule "tenants"`},
		{"b/x", ""}, {"b/x", ""}, {"c/x", `rule "tenants"`},
		{"calico/node", ""}, {"calico/node", ""}, {"calico/node", ""}, {"calico/node", ""},
		{"calico/node", ""},
		{"calico/node", `account "system:serviceaccount:calico:node"`},
	} {
		if over := ask(p, step.who); over != step.over {
			t.Errorf("%s is over %q, want %q", step.who, over, step.over)
		}
	}
	// Accounts of one namespace share what it has, whichever rule grants.
	p = parsePolicy(t,
		strings.NewReplacer("perNamespace: 3", "perNamespace: 6", "limit: 5", "limit: 10",
			"total: 10, perNamespace: 6", "total: 20, perNamespace: 6").Replace(small))
	b = newBudget()
	for i := range 6 {
		if over := ask(p, fmt.Sprint("calico/", []string{"node", "other"}[i%2])); over != "" {
			t.Fatalf("%d: over %q", i, over)
		}
	}
	if over := ask(p, "calico/other"); over != `namespace "calico"` {
		t.Errorf("over %q", over)
	}
}

// What a rule was granted under a former name counts for all. It leaves the reserves of the other
// rules alone while there is any of the total.
func TestBudgetOfARenamedRule(t *testing.T) {
	p, now := parsePolicy(t, small), time.Now()
	b := newBudget()
	for i := range 3 {
		if over := newPods(t, p, "a", fmt.Sprint(i), "one").ask(t, b, fmt.Sprint("a", i),
			now); over != "" {
			t.Fatalf("over %q", over)
		}
	}
	renamed := parsePolicy(t, strings.ReplaceAll(small, "name: tenants", "name: others"))
	// a reserve of 1, and 2 of the 5 for all
	for i, want := range []string{"", "", "", "all rules beyond what is reserved for each"} {
		if over := newPods(t, renamed, fmt.Sprint("b", i), "x", "one").ask(t, b, fmt.Sprint("b", i),
			now); over != want {
			t.Errorf("certificate %d under the new name is over %q, want %q", i, over, want)
		}
	}
	for i := range 4 {
		if over := newPods(t, renamed, "calico", "node", "one").ask(t, b, fmt.Sprint("n", i),
			now); over != "" {
			t.Errorf("node %d is over %q", i, over)
		}
	}
}

// The reserves count what was granted before a restart, by the rule that the journal knows.
func TestReservesOutliveARestart(t *testing.T) {
	made := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
	ca, err := ParseCA(made.chain)
	must.OK(t, err)
	dir := t.TempDir()
	p := parsePolicy(t, strings.Replace(small, "limit: 5, perNamespace: 3", "limit: 10", 1))
	start := func() (*Issuer, *journal.Writer) {
		j, err := journal.Open(dir, journal.Options{Version: "test", CA: ca.Certificate()})
		must.OK(t, err)
		i, err := New(Authority{CA: ca, Key: softKey{key: made.key}}, j)
		must.OK(t, err)
		return i, j
	}
	grant := func(account string, n int) *policy.Grant {
		return grantTo(t, p, account, fmt.Sprint("pod-", account, n),
			fmt.Sprint("uid-", account, n), 0, pkcs10test.Request{DNSNames: []string{"one"}})
	}
	i, j := start()
	for n := range 6 { // a reserve of 1, and the 5 for all
		issue(t, i, grant(fmt.Sprint("tenant:", n), n))
	}
	must.OK(t, j.Close())
	i, j = start()
	_, instead, err := i.Prepare(t.Context(), grant("other:x", 0))
	if spent := over(instead); err != nil || spent == nil ||
		spent.Whose != "all rules beyond what is reserved for each" || spent.Limit != 5 {
		t.Errorf("a tenant after the restart: %v, %v", instead, err)
	}
	for n := range 4 {
		if _, instead, err := i.Prepare(t.Context(), grant("calico:node", n)); instead != nil ||
			err != nil {
			t.Errorf("node %d after the restart: %v, %v", n, instead, err)
		}
	}
	must.OK(t, j.Close())
}
