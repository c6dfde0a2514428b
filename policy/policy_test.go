package policy_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509/pkix"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

var (
	podIP   = netip.MustParseAddr("10.65.0.7")
	otherIP = netip.MustParseAddr("10.65.0.8")

	calicoUsages = []policy.Usage{policy.ServerAuth, policy.ClientAuth, policy.DigitalSignature,
		policy.KeyAgreement, policy.KeyEncipherment}
)

// An asker is a pod of a service account that asks for a certificate.
type asker struct {
	namespace, account string
	cn                 string
	dns                []string
	ips                []netip.Addr
	usages             []policy.Usage
	lifetime           time.Duration
	age                time.Duration
	pod                *policy.Pod // what the API server says; nil: there is none
	extra              map[string][]string
}

// newAsker asks for the names with the IP of its pod, which is as expected.
func newAsker(namespace, account string, names ...string) asker {
	return asker{
		namespace: namespace, account: account, cn: names[0], dns: names, ips: []netip.Addr{podIP},
		usages: calicoUsages, age: time.Minute,
		pod: &policy.Pod{Namespace: namespace, Name: "p-1", UID: "u-1", ServiceAccount: account,
			Node: "n-1", IPs: []netip.Addr{podIP}},
		extra: map[string][]string{
			"authentication.kubernetes.io/pod-name":  {"p-1"},
			"authentication.kubernetes.io/pod-uid":   {"u-1"},
			"authentication.kubernetes.io/node-name": {"n-1"},
		},
	}
}

func (a asker) request(t testing.TB) (*policy.Request, policy.Facts) {
	t.Helper()
	return a.requestOf(pkcs10test.Request{Subject: pkix.Name{CommonName: a.cn,
		Organization: []string{"Tigera"}}, DNSNames: a.dns, IPs: a.ips}.PEM(t))
}

// requestOf asks with a PKCS#10 request that was made already.
func (a asker) requestOf(pem []byte) (*policy.Request, policy.Facts) {
	r := a.notLookedUp(pem)
	query, _ := r.PodQuery()
	if a.pod == nil {
		return r, query.Found()
	}
	return r, query.Found(*a.pod)
}

// notLookedUp asks with a PKCS#10 request, and nobody has looked up the pod.
func (a asker) notLookedUp(pem []byte) *policy.Request {
	return policy.NewRequest(policy.Submission{
		UID: "r-1", SignerName: "example.com/calico", Usages: a.usages, Lifetime: a.lifetime,
		Age: a.age, PEM: pem,
		Requester: policy.Requester{
			Username: "system:serviceaccount:" + a.namespace + ":" + a.account,
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + a.namespace,
				"system:authenticated"},
			Extra: a.extra,
		},
	})
}

func builtIn(t testing.TB, name string) *policy.Policy {
	t.Helper()
	text, ok := policy.BuiltIn(name)
	if !ok {
		t.Fatalf("no built-in policy %s", name)
	}
	return must.Value(policy.Parse(text,
		policy.Options{ClusterDomain: "cluster.local", MaxLifetime: 8760 * time.Hour,
			TrustDomain: "example.org"}))(t)
}

// commonName is that of the granted subject; it may be empty.
func commonName(g *policy.Grant) string {
	for _, a := range g.Subject() {
		if a.Name == "CN" {
			return a.Value
		}
	}
	return ""
}

func requireGrant(t *testing.T, v policy.Verdict) *policy.Grant {
	t.Helper()
	g, ok := v.(*policy.Grant)
	if !ok {
		t.Fatalf("not granted: %T %+v", v, v)
	}
	return g
}

func requireRefusal(t *testing.T, v policy.Verdict, code policy.Code, words string) {
	t.Helper()
	r, ok := v.(*policy.Refusal)
	if !ok {
		t.Fatalf("not refused: %T", v)
	}
	if r.Code() != code || !strings.Contains(r.Message(), words) {
		t.Errorf("refused as %s: %s; want %s and %q", r.Code(), r.Message(), code, words)
	}
}

// A component is one row of Calico's: who asks, and for which names.
type component struct {
	account, rule, cn string // cn: the first name if empty
	names             []string
}

// components are the certificates of Calico's components: the service account that asks for it, the
// rule that grants it, its common name and its DNS names.
var components = []component{
	{"calico-system/calico-node", "calico-node", "", []string{"typha-client"}},
	{"calico-system/calico-typha", "calico-typha", "", []string{"typha-server"}},
	{"calico-system/calico-apiserver", "calico-apiserver", "", svc("calico-api", "calico-system")},
	{"calico-apiserver/calico-apiserver", "calico-apiserver-3.30", "",
		svc("calico-api", "calico-apiserver")},

	{"calico-system/calico-node", "calico-node-metrics", "",
		svc("calico-node-metrics", "calico-system")},
	{"calico-system/calico-typha", "calico-typha-noncluster-host", "",
		[]string{"typha-server-noncluster-host"}},
	{"tigera-system/tigera-apiserver", "tigera-apiserver", "", svc("tigera-api", "tigera-system")},
	{"calico-system/calico-kube-controllers", "calico-kube-controllers-metrics", "",
		svc("calico-kube-controllers-metrics", "calico-system")},
	{"calico-system/calico-kube-controllers", "calico-kube-controllers-waf-webhook", "",
		svc("tigera-waf-webhook", "calico-system")},
	{"tigera-dpi/tigera-dpi", "tigera-dpi", "", []string{"typha-client"}},

	{"calico-system/calico-manager", "calico-manager", "",
		slices.Concat([]string{"localhost"}, svc("calico-manager", "calico-system"),
			svc("tigera-manager", "tigera-manager"))},
	{"calico-system/calico-manager", "calico-manager-internal", "",
		slices.Concat(svc("calico-manager", "calico-system"),
			svc("tigera-manager", "tigera-manager"))},
	{"calico-system/calico-manager", "calico-manager-linseed", "",
		svc("tigera-linseed", "tigera-elasticsearch")},
	{"tigera-manager/tigera-manager", "tigera-manager", "",
		slices.Concat(svc("tigera-manager", "tigera-manager"), []string{"localhost"})},
	{"tigera-manager/tigera-manager", "calico-manager-linseed", "",
		svc("tigera-linseed", "tigera-elasticsearch")},

	{"tigera-elasticsearch/tigera-elasticsearch", "tigera-elasticsearch", "",
		svc("tigera-secure-es-http", "tigera-elasticsearch")},
	{"tigera-elasticsearch/tigera-secure-es-gateway", "tigera-secure-es-gateway", "",
		slices.Concat(svc("tigera-secure-es-http", "tigera-elasticsearch"),
			svc("tigera-secure-es-gateway-http", "tigera-elasticsearch"))},
	{"tigera-elasticsearch/tigera-elasticsearch-metrics", "tigera-elasticsearch-metrics", "",
		svc("tigera-elasticsearch-metrics", "tigera-elasticsearch")},
	{"tigera-elasticsearch/tigera-linseed", "tigera-linseed", "",
		svc("tigera-linseed", "tigera-elasticsearch")},
	{"tigera-elasticsearch/tigera-linseed", "tigera-linseed-token", "",
		[]string{"tigera-secure-linseed-token-tls"}},
	{"tigera-kibana/tigera-kibana", "tigera-kibana", "tigera-secure-es-http",
		svc("tigera-secure-kb-http", "tigera-kibana")},
	{"calico-system/calico-fluent-bit", "calico-fluent-bit", "",
		slices.Concat([]string{"calico-fluent-bit-tls"},
			svc("calico-fluent-bit-http-input", "calico-system"))},
	{"tigera-fluentd/fluentd-node", "fluentd-node", "",
		slices.Concat([]string{"tigera-fluentd-prometheus-tls"},
			svc("fluentd-http-input", "tigera-fluentd"))},
	{"tigera-prometheus/prometheus", "prometheus", "",
		svc("prometheus-http-api", "tigera-prometheus")},
	{"tigera-prometheus/prometheus", "prometheus-client", "",
		[]string{"calico-node-prometheus-client-tls"}},

	{"tigera-compliance/tigera-compliance-controller", "tigera-compliance", "",
		[]string{"localhost"}},
	{"tigera-compliance/tigera-compliance-reporter", "tigera-compliance", "",
		[]string{"localhost"}},
	{"tigera-compliance/tigera-compliance-snapshotter", "tigera-compliance", "",
		[]string{"localhost"}},
	{"tigera-compliance/tigera-compliance-benchmarker", "tigera-compliance", "",
		[]string{"localhost"}},
	{"tigera-compliance/tigera-compliance-server", "tigera-compliance-server", "",
		svc("compliance", "tigera-compliance")},

	{"tigera-dex/tigera-dex", "tigera-dex", "", svc("tigera-dex", "tigera-dex")},
	{"tigera-packetcapture/tigera-packetcapture", "tigera-packetcapture", "",
		svc("tigera-packetcapture", "tigera-packetcapture")},
	{"tigera-intrusion-detection/intrusion-detection-controller", "intrusion-detection-controller",
		"", svc("intrusion-detection-tls", "tigera-intrusion-detection")},
	{"calico-system/tigera-policy-recommendation", "tigera-policy-recommendation", "",
		[]string{"policy-recommendation-tls"}},
	{"tigera-policy-recommendation/tigera-policy-recommendation", "tigera-policy-recommendation",
		"", []string{"policy-recommendation-tls"}},
}

// alsoTheirs are the certificates of another component whose names are a component's own too.
var alsoTheirs = map[string][]string{
	"calico-system/calico-node": {"tigera-dpi/tigera-dpi tigera-dpi"},
	"tigera-dpi/tigera-dpi":     {"calico-system/calico-node calico-node"},

	"calico-system/calico-manager": {"tigera-manager/tigera-manager tigera-manager",
		"tigera-manager/tigera-manager calico-manager-linseed",
		"tigera-elasticsearch/tigera-linseed tigera-linseed"},
	"tigera-manager/tigera-manager": {"calico-system/calico-manager calico-manager-linseed",
		"tigera-elasticsearch/tigera-linseed tigera-linseed"},
	"tigera-elasticsearch/tigera-linseed": {"calico-system/calico-manager calico-manager-linseed",
		"tigera-manager/tigera-manager calico-manager-linseed"},

	"tigera-elasticsearch/tigera-secure-es-gateway": {"tigera-elasticsearch/tigera-elasticsearch " +
		"tigera-elasticsearch"},

	"calico-system/tigera-policy-recommendation":                {"tigera-policy-recommendation/tigera-policy-recommendation tigera-policy-recommendation"},
	"tigera-policy-recommendation/tigera-policy-recommendation": {"calico-system/tigera-policy-recommendation tigera-policy-recommendation"},
}

// onLocalhost are the components that may have the name localhost alone.
var onLocalhost = []string{
	"calico-system/calico-manager", "tigera-manager/tigera-manager",
	"tigera-compliance/tigera-compliance-controller",
	"tigera-compliance/tigera-compliance-reporter",
	"tigera-compliance/tigera-compliance-snapshotter",
	"tigera-compliance/tigera-compliance-benchmarker",
}

// svc returns the names of a service, as Calico's operator writes them.
func svc(name, namespace string) []string {
	return []string{name, name + "." + namespace, name + "." + namespace + ".svc",
		name + "." + namespace + ".svc.cluster.local"}
}

// newComponent asks as the service account NAMESPACE/NAME.
func newComponent(account, cn string, names []string) asker {
	namespace, name, _ := strings.Cut(account, "/")
	a := newAsker(namespace, name, names...)
	if cn != "" {
		a.cn = cn
	}
	return a
}

// openSource are the rules of open-source Calico.
var openSource = []string{"calico-node", "calico-typha", "calico-apiserver",
	"calico-apiserver-3.30"}

// Each component gets its own names, and none gets a name of another that is not its own.
func TestEachComponentGetsItsOwnNamesAlone(t *testing.T) {
	for _, profile := range policy.BuiltInNames() {
		p := builtIn(t, profile)
		for _, who := range components {
			for _, whose := range components {
				a := newComponent(who.account, whose.cn, whose.names)
				if profile == "calico-legacy" {
					a.extra = nil
				}
				g, granted := p.Decide(a.request(t)).(*policy.Grant)
				own := who.account == whose.account
				want := own ||
					slices.Contains(alsoTheirs[who.account], whose.account+" "+whose.rule) ||
					slices.Equal(whose.names, []string{"localhost"}) &&
						slices.Contains(onLocalhost, who.account)
				switch profile {
				case "calico-enterprise":
				case "pods": // which is for another kind of request
					want = false
				default: // those know the open-source components alone
					want = slices.ContainsFunc(components, func(c component) bool {
						return c.account == who.account && slices.Contains(openSource, c.rule) &&
							slices.Equal(c.names, whose.names)
					})
				}
				if granted != want {
					t.Errorf("%s: %s asks for %v of %s: granted is %t", profile, who.account,
						whose.names, whose.rule, granted)
				}
				if granted && own &&
					(g.Rule() != whose.rule || commonName(g) != a.cn ||
						!slices.Equal(g.DNSNames(), whose.names)) {
					t.Errorf("%s: %s is granted %q %v by %s, want %q %v by %s", profile,
						who.account, commonName(g), g.DNSNames(), g.Rule(), a.cn, whose.names,
						whose.rule)
				}
			}
		}
	}
}

// What a component must not have at all, whoever else has it.
func TestNoComponentGetsMoreThanItsNames(t *testing.T) {
	p := builtIn(t, "calico-enterprise")
	for _, who := range components {
		for name, change := range map[string]func(*asker){
			"a name that nobody has": func(a *asker) {
				a.dns = append(slices.Clone(a.dns), "kubernetes.default.svc")
			},
			"a common name that nobody has": func(a *asker) { a.cn = "kubernetes" },
			"its names, from another namespace": func(a *asker) {
				a.namespace, a.pod.Namespace = "default", "default"
			},
			"its names, from another account": func(a *asker) {
				a.account, a.pod.ServiceAccount = "default", "default"
			},
			"its names, with another's address": func(a *asker) { a.ips = []netip.Addr{otherIP} },
			"a name of another cluster": func(a *asker) {
				a.dns = append(slices.Clone(a.dns), who.names[0]+".x.svc.example.org")
			},
			"a wildcard of its name": func(a *asker) {
				a.dns = append(slices.Clone(a.dns), "*."+who.names[0])
			},
			"another's name beside its own": func(a *asker) {
				a.dns = append(slices.Clone(a.dns), "calico-api.default.svc")
			},
		} {
			a := newComponent(who.account, who.cn, who.names)
			change(&a)
			if v, ok := p.Decide(a.request(t)).(*policy.Refusal); !ok {
				t.Errorf("%s (%s), %s: %T", who.account, who.rule, name, v)
			}
		}
	}
}

// A component with two certificates cannot have the names of both in one.
func TestNamesOfTwoCertificatesDoNotMix(t *testing.T) {
	p := builtIn(t, "calico-enterprise")
	tried := 0
	for _, one := range components {
		for _, other := range components {
			mixed := slices.Concat(one.names, other.names)
			slices.Sort(mixed)
			mixed = slices.Compact(mixed)
			if one.account != other.account || len(mixed) == len(one.names) ||
				len(mixed) == len(other.names) {
				continue // not two certificates, or the one has all names of the other
			}
			tried++
			requireRefusal(t, p.Decide(newComponent(one.account, one.names[0], mixed).request(t)),
				policy.NameNotAllowed, "is not a name of the service account "+one.account)
		}
	}
	if tried != 16 {
		t.Errorf("%d pairs were tried", tried)
	}
}

// Kibana's common name is the one it has, although it is not among its DNS names, and no other.
func TestCommonNameThatIsNotAmongTheNames(t *testing.T) {
	p := builtIn(t, "calico-enterprise")
	names := svc("tigera-secure-kb-http", "tigera-kibana")
	requireGrant(t,
		p.Decide(newComponent("tigera-kibana/tigera-kibana", "tigera-secure-es-http",
			names).request(t)))
	requireRefusal(t, p.Decide(newComponent("tigera-kibana/tigera-kibana", "", names).request(t)),
		policy.NameNotAllowed, "is not a common name of")
	requireRefusal(t,
		p.Decide(newComponent("tigera-kibana/tigera-kibana", "tigera-secure-es-http",
			svc("tigera-secure-es-http", "tigera-kibana")).request(t)), policy.NameNotAllowed,
		"is not a name of")
}

// The table of components names every service account of every rule.
func TestEveryRuleHasItsComponent(t *testing.T) {
	var file struct {
		Rules []struct {
			Name string
			From struct {
				ServiceAccounts []string `yaml:"serviceAccounts"`
			}
		}
	}
	text, _ := policy.BuiltIn("calico-enterprise")
	must.OK(t, yaml.Unmarshal(text, &file))
	var written, tested []string
	for _, rule := range file.Rules {
		for _, account := range rule.From.ServiceAccounts {
			written = append(written, account+" "+rule.Name)
		}
	}
	for _, c := range components {
		tested = append(tested, c.account+" "+c.rule)
	}
	slices.Sort(written)
	slices.Sort(tested)
	if !slices.Equal(written, tested) {
		t.Errorf("the profile has\n%s\nthe table of components\n%s", strings.Join(written, "\n"),
			strings.Join(tested, "\n"))
	}
}

func TestServiceNamesFollowNamespaceAndClusterDomain(t *testing.T) {
	const text = `version: 1
rules:
  - name: a
    from:
      serviceAccounts: [own/a]
    grant:
      dnsNames: [service: x, {namespace: other, service: y}]
      ipAddresses: [pod]
      keys: [ecdsa-p256]
      usages: [server auth, client auth, digital signature, key encipherment, key agreement]
`
	p, err := policy.Parse([]byte(text),
		policy.Options{ClusterDomain: "example.org", MaxLifetime: time.Hour})
	must.OK(t, err)
	for _, name := range []string{"x", "x.own", "x.own.svc", "x.own.svc.example.org", "y",
		"y.other", "y.other.svc", "y.other.svc.example.org"} {
		requireGrant(t, p.Decide(newAsker("own", "a", name).request(t)))
	}
	for _, name := range []string{"x.other", "x.other.svc", "y.own", "y.own.svc.example.org",
		"y.other.svc.cluster.local", "x.own.svc.cluster.local", "other", "y.other.example.org"} {
		requireRefusal(t, p.Decide(newAsker("own", "a", name).request(t)),
			policy.NameNotAllowed, name)
	}
}

func TestGrantHoldsWhatWasAskedAndNoMore(t *testing.T) {
	a := newAsker("calico-system", "calico-typha", "typha-server")
	a.lifetime = time.Hour
	g := requireGrant(t, builtIn(t, "calico").Decide(a.request(t)))
	if commonName(g) != "typha-server" || !slices.Equal(g.DNSNames(), []string{"typha-server"}) ||
		!slices.Equal(g.IPAddresses(), []netip.Addr{podIP}) {
		t.Errorf("names: %q %v %v", commonName(g), g.DNSNames(), g.IPAddresses())
	}
	// The key is an ECDSA key: it agrees and does not encipher.
	if want := []policy.Usage{policy.ServerAuth, policy.ClientAuth, policy.DigitalSignature,
		policy.KeyAgreement}; !slices.Equal(g.Usages(), want) {
		t.Errorf("usages: %v, want %v", g.Usages(), want)
	}
	if g.Lifetime() != time.Hour || g.Rule() != "calico-typha" || g.RequestUID() != "r-1" ||
		len(g.RequestSHA256()) != 64 {
		t.Errorf("lifetime %s, rule %q, uid %q, sha256 %q", g.Lifetime(), g.Rule(), g.RequestUID(),
			g.RequestSHA256())
	}
}

func TestLifetimeIsTheLeastOfAskedRuleAndMost(t *testing.T) {
	text, _ := policy.BuiltIn("calico")
	shorter := strings.Replace(string(text), "    ipAddresses: [pod]",
		"    maxLifetime: 24h\n    ipAddresses: [pod]", 1)
	for _, c := range []struct {
		text        string
		asked, want time.Duration
	}{
		{string(text), 0, 48 * time.Hour},
		{string(text), time.Hour, time.Hour},
		{string(text), 8760 * time.Hour, 48 * time.Hour},
		{shorter, 0, 24 * time.Hour},
		{shorter, 36 * time.Hour, 24 * time.Hour},
	} {
		p, err := policy.Parse([]byte(c.text),
			policy.Options{ClusterDomain: "cluster.local", MaxLifetime: 48 * time.Hour})
		must.OK(t, err)
		a := newAsker("calico-system", "calico-node", "typha-client")
		a.lifetime = c.asked
		if g := requireGrant(t, p.Decide(a.request(t))); g.Lifetime() != c.want {
			t.Errorf("asked %s: granted %s, want %s", c.asked, g.Lifetime(), c.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	p := builtIn(t, "calico")
	for _, c := range []struct {
		name   string
		change func(*asker)
		code   policy.Code
		words  string
	}{
		{"a stranger", func(a *asker) {
			a.account = "default"
		}, policy.RequesterNotAllowed,
			"the service account calico-system/default, which no rule names"},
		{"same account name elsewhere", func(a *asker) {
			a.namespace = "evil"
		}, policy.RequesterNotAllowed, "evil/calico-node"},
		{"token without a pod", func(a *asker) {
			a.extra = nil
		}, policy.PodNotVerified, "bound to its pod"},
		{"token with two pods", func(a *asker) {
			a.extra["authentication.kubernetes.io/pod-uid"] = []string{"u-1", "u-2"}
		}, policy.PodNotVerified, "bound to its pod"},
		{"pod made again", func(a *asker) {
			a.pod.UID = "u-2"
		}, policy.PodNotVerified, "another UID"},
		{"pod of another account", func(a *asker) {
			a.pod.ServiceAccount = "other"
		}, policy.PodNotVerified, "does not run as"},
		{"pod on another node", func(a *asker) {
			a.pod.Node = "n-2"
		}, policy.PodNotVerified, "another node"},
		{"pod being deleted", func(a *asker) {
			a.pod.Deleting = true
		}, policy.PodNotVerified, "being deleted"},
		{"pod finished", func(a *asker) {
			a.pod.Finished = true
		}, policy.PodNotVerified, "finished"},
		{"another's IP", func(a *asker) {
			a.ips = []netip.Addr{otherIP}
		}, policy.NameNotAllowed, "10.65.0.8 is not an address"},
		{"another's IP beside its own", func(a *asker) {
			a.ips = []netip.Addr{podIP, otherIP}
		}, policy.NameNotAllowed, "10.65.0.8"},
		{"loopback though the pod has it", func(a *asker) {
			a.ips = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
			a.pod.IPs = a.ips
		}, policy.NameNotAllowed, "127.0.0.1"},
		{"a metadata service though the pod has it", func(a *asker) {
			a.ips = []netip.Addr{netip.MustParseAddr("168.63.129.16")}
			a.pod.IPs = a.ips
		}, policy.NameNotAllowed, "168.63.129.16"},
		{"another's name beside its own", func(a *asker) {
			a.dns = []string{"typha-client", "typha-server"}
		}, policy.NameNotAllowed, "typha-server"},
		{"another's common name", func(a *asker) {
			a.cn = "typha-server"
		}, policy.NameNotAllowed, "typha-server"},
		{"a common name that is not among the names", func(a *asker) {
			a.dns = nil
		}, policy.NameNotAllowed, "one of the requested DNS names"},
		{"no name at all", func(a *asker) {
			a.cn, a.dns, a.ips = "", nil, nil
		}, policy.NameNotAllowed, "at least one"},
		{"a usage of a CA", func(a *asker) {
			a.usages = append(slices.Clone(a.usages), "cert sign")
		}, policy.UsageNotAllowed, "cert sign"},
		{"any usage", func(a *asker) {
			a.usages = []policy.Usage{"any"}
		}, policy.UsageNotAllowed, "any"},
		{"no usage", func(a *asker) { a.usages = nil }, policy.UsageNotAllowed, "0 entries"},
		{"no key usage that the key can serve", func(a *asker) {
			a.usages = []policy.Usage{policy.KeyEncipherment, policy.ServerAuth}
		}, policy.UsageNotAllowed, "can serve"},
		{"loopback at once", func(a *asker) {
			a.ips, a.age = []netip.Addr{netip.MustParseAddr("127.0.0.1")}, 0
		}, policy.NameNotAllowed, "127.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAsker("calico-system", "calico-node", "typha-client")
			c.change(&a)
			requireRefusal(t, p.Decide(a.request(t)), c.code, c.words)
		})
	}
}

// A username alone does not make a service account: the API server gives groups with it.
func TestServiceAccountNeedsItsGroups(t *testing.T) {
	r, facts := newAsker("calico-system", "calico-node", "typha-client").request(t)
	r.Requester.Groups = []string{"system:authenticated"}
	requireRefusal(t, builtIn(t, "calico").Decide(r, facts), policy.RequesterNotAllowed,
		"system:serviceaccount:calico-system:calico-node")
}

// Whether a rule names the requester does not depend on what it sends.
func TestStrangerIsAStrangerWhateverItSends(t *testing.T) {
	good := pkcs10test.Request{DNSNames: []string{"typha-client"}, IPs: []netip.Addr{podIP}}.PEM(t)
	for _, pem := range []string{"", "nonsense", "-----BEGIN NEW CERTIFICATE REQUEST-----",
		string(good)} {
		v := builtIn(t,
			"calico-legacy").
			Decide(policy.NewRequest(policy.Submission{PEM: []byte(pem),
				Requester: policy.Requester{Username: "system:node:n1"}}), policy.Facts{})
		if refusal, ok := v.(*policy.Refusal); !ok || !refusal.UnknownRequester() ||
			refusal.Code() != policy.RequesterNotAllowed {
			t.Errorf("%q: %+v", pem, v)
		}
	}
}

// Whatever a requester that no rule names sends, it costs no more than a look at the requester.
func TestNothingOfAStrangerIsParsed(t *testing.T) {
	p := builtIn(t, "calico")
	known, stranger := newAsker("calico-system", "calico-node", "typha-client"),
		newAsker("calico-system", "stranger", "typha-client")
	for _, asker := range []asker{known, stranger} {
		v := p.Decide(asker.requestOf([]byte("nonsense")))
		if refusal, ok := v.(*policy.Refusal); !ok ||
			refusal.UnknownRequester() != (asker.account == "stranger") ||
			len(refusal.Reasons) != 1 {
			t.Errorf("%s: %+v", asker.account, v)
		}
	}
	cost := func(pem []byte) float64 {
		return testing.AllocsPerRun(10, func() {
			r := stranger.notLookedUp(pem)
			if _, needed := p.PodQuery(r); needed {
				t.Error("the pod of a stranger is to be looked up")
			}
			p.Decide(r, policy.Facts{})
		})
	}
	whole := pkcs10test.Request{DNSNames: []string{"typha-client"}, IPs: []netip.Addr{podIP}}.PEM(t)
	// With the race detector the counts vary by a few; to parse the request takes hundreds more.
	if least, most := cost(nil), cost(whole); most > 2*least {
		t.Errorf("a request of a stranger costs %.0f allocations, and nothing %.0f", most, least)
	}
}

// Every reason is collected, also those of a request that cannot be granted for what it is.
func TestAllReasonsAreCollected(t *testing.T) {
	a := newAsker("calico-system", "calico-node", "typha-client", "*.evil", "typha-server")
	a.usages = []policy.Usage{"crl sign"}
	v := builtIn(t, "calico").Decide(a.request(t))
	refusal, ok := v.(*policy.Refusal)
	if !ok {
		t.Fatalf("not refused: %T", v)
	}
	for _, words := range []string{"wildcard", "typha-server", "crl sign"} {
		if !strings.Contains(refusal.String(), words) {
			t.Errorf("%q is missing in: %s", words, refusal)
		}
	}
}

// Nobody looks for the pod of a request that is refused for what it is, so nothing is said of that
// pod.
func TestNothingIsSaidOfAPodThatNobodyLookedFor(t *testing.T) {
	a := newAsker("calico-system", "calico-node", "*.evil", "typha-server")
	a.pod = nil
	request, _ := a.request(t)
	if _, ok := request.PodQuery(); ok {
		t.Error("a pod is to be looked for")
	}
	refusal, ok := builtIn(t, "calico").Decide(request, policy.Facts{}).(*policy.Refusal)
	if !ok || strings.Contains(refusal.String(), "p-1") ||
		!strings.Contains(refusal.String(), "typha-server") {
		t.Errorf("%v", refusal)
	}
}

// Without the facts of its own look-up a request waits, whatever they would be: it is never refused
// because of a pod that nobody looked up.
func TestPodThatWasNotLookedUpIsNoReason(t *testing.T) {
	a := newAsker("calico-system", "calico-node", "typha-client")
	request, found := a.request(t)
	other := newAsker("calico-system", "calico-node", "typha-client")
	other.extra["authentication.kubernetes.io/pod-name"] = []string{"p-2"}
	_, foundOther := other.request(t)
	p := builtIn(t, "calico")
	for name, facts := range map[string]policy.Facts{"none": {}, "another pod's": foundOther} {
		if v, waits := p.Decide(request, facts).(*policy.Waiting); !waits {
			t.Errorf("facts: %s: %T", name, v)
		}
	}
	requireGrant(t, p.Decide(request, found))
	query, _ := request.PodQuery()
	requireRefusal(t, p.Decide(request, query.Found()), policy.PodNotVerified, "p-1 is gone")
}

// The expensive checks of a key are not part of the decision: the budget comes before them.
func TestPrimeModulusIsRefused(t *testing.T) {
	const rule = `version: 1
rules:
  - name: any
    from: {users: ["*"], pod: none}
    grant: {dnsNames: [a], keys: [rsa-2048], usages: [digital signature]}
`
	a := newAsker("x", "y", "a")
	a.usages = []policy.Usage{policy.DigitalSignature}
	g := requireGrant(t, parse(t, rule).Decide(a.requestOf(pkcs10test.PrimeModulus(t))))
	requireRefusal(t, g.CheckKey(), policy.InvalidRequest, "its modulus is a prime")
	good := requireGrant(t,
		builtIn(t,
			"calico").Decide(newAsker("calico-system", "calico-node", "typha-client").request(t)))
	if refusal := good.CheckKey(); refusal != nil {
		t.Errorf("a good key: %s", refusal)
	}
}

func TestRequesterIsNotToldWhatOthersMayHave(t *testing.T) {
	v := builtIn(t, "calico").Decide(newAsker("calico-system", "default", "x").request(t))
	refusal, ok := v.(*policy.Refusal)
	if !ok {
		t.Fatalf("not refused: %T", v)
	}
	if strings.Contains(refusal.Message(), "calico-typha") ||
		!strings.Contains(refusal.String(), "calico-typha") {
		t.Errorf("message: %s; for the operator: %s", refusal.Message(), refusal)
	}
}

// What the requester reads are its own derived names, once, and what else the rule allows is not
// among them.
func TestRequesterIsToldItsOwnNames(t *testing.T) {
	a := newAsker("shop", "till", "x.example.com", "y.example.com")
	a.ips = []netip.Addr{otherIP}
	own := strings.Replace(names, "dnsNames: [\"{serv", "ipAddresses: [pod, 192.0.2.1]\n      "+
		"dnsNames: [{service: till}, {service: a, namespace: b}, \"{serv", 1)
	refusal, ok := parse(t, own).Decide(a.request(t)).(*policy.Refusal)
	if !ok {
		t.Fatal("not refused")
	}
	for _, once := range []string{
		"its own are till, till.shop, till.shop.svc, till.shop.svc.cluster.local, " +
			"till.shop.example.com, *.shop.svc;",
		"common name of the service account shop/till; its own are till;", "which has 10.65.0.7",
	} {
		if strings.Count(refusal.Message()+";", once) != 1 {
			t.Errorf("%q is not there once: %s", once, refusal.Message())
		}
	}
	for _, others := range []string{"apps.example.com", "wide.example.com", "a.b", "fixed",
		"192.0.2.1", "ecdsa"} {
		if strings.Contains(refusal.Message(), others) ||
			others != "ecdsa" && !strings.Contains(refusal.String(), others) {
			t.Errorf("%q: the requester is told %s; the operator %s", others, refusal.Message(),
				refusal)
		}
	}
}

// What else is allowed is for the log, also of keys and usages.
func TestKeyThatTheRuleDoesNotAllow(t *testing.T) {
	a := newAsker("shop", "till", "till.shop.example.com")
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must.OK(t, err)
	v := parse(t, names).Decide(a.requestOf(pkcs10test.Request{Key: key, DNSNames: a.dns}.PEM(t)))
	requireRefusal(t, v, policy.KeyNotAllowed, "is of the type ed25519")
	if refusal, ok := v.(*policy.Refusal); !ok ||
		strings.Contains(refusal.Message(), "ecdsa-p256") ||
		!strings.Contains(refusal.String(), "ecdsa-p256") {
		t.Errorf("%v", v)
	}
}

func TestMissingFactsAreWaitedFor(t *testing.T) {
	p := builtIn(t, "calico")
	noIP := newAsker("calico-system", "calico-node", "typha-client")
	noIP.pod.IPs = nil
	oldIP := newAsker("calico-system", "calico-node", "typha-client") // its sandbox was recreated
	oldIP.pod.IPs, oldIP.age = []netip.Addr{otherIP}, time.Second
	for _, a := range []asker{noIP, oldIP} {
		v, ok := p.Decide(a.request(t)).(*policy.Waiting)
		if !ok || v.Rule != "calico-node" || !strings.Contains(v.Missing, "p-1") {
			t.Errorf("verdict %+v", v)
		}
	}
	// What is wrong is wrong, whether or not a fact is missing.
	wrong := noIP
	wrong.dns = []string{"typha-server"}
	requireRefusal(t, p.Decide(wrong.request(t)), policy.NameNotAllowed, "typha-server")
	// Nobody waits forever, and not at all for a pod that was there before its token.
	noIP.age = time.Hour
	requireRefusal(t, p.Decide(noIP.request(t)), policy.PodNotVerified, "minutes: the IP address")
	gone := newAsker("calico-system", "calico-node", "typha-client")
	gone.pod = nil
	requireRefusal(t, p.Decide(gone.request(t)), policy.PodNotVerified, "p-1 is gone")
}

func TestLegacyRequesterIsBoundByItsAddress(t *testing.T) {
	p := builtIn(t, "calico-legacy")
	a := newAsker("calico-system", "calico-node", "typha-client")
	a.extra = nil
	request, facts := a.request(t)
	if q, ok := request.PodQuery(); !ok || q.ServiceAccount != "calico-node" || q.IP != podIP {
		t.Errorf("query %+v", q)
	}
	requireGrant(t, p.Decide(request, facts))

	bound := newAsker("calico-system", "calico-node", "typha-client")
	bound.pod.UID = "u-2" // a token that names its pod binds here too
	requireRefusal(t, p.Decide(bound.request(t)), policy.PodNotVerified, "another UID")

	without := a
	without.ips = nil
	requireRefusal(t, p.Decide(without.request(t)), policy.PodNotVerified, "exactly one IP address")

	other := newAsker("calico-system", "calico-node", "typha-client")
	other.extra, other.pod.ServiceAccount = nil, "other"
	if v, ok := p.Decide(other.request(t)).(*policy.Waiting); !ok {
		t.Errorf("a pod of another service account: %T", v)
	}
}

func TestGrantIsSpentOnce(t *testing.T) {
	p := builtIn(t, "calico")
	g := requireGrant(t,
		p.Decide(newAsker("calico-system", "calico-node", "typha-client").request(t)))
	twin := *g
	must.OK(t, g.Redeem())
	if err := twin.Redeem(); !errors.Is(err, policy.ErrGrantSpent) {
		t.Errorf("a copy of a spent grant: %v", err)
	}
	if err := g.InForce(); err != nil {
		t.Errorf("a spent grant of a policy in force: %v", err)
	}
	if err := (&policy.Grant{}).Redeem(); !errors.Is(err, policy.ErrNoGrant) {
		t.Errorf("an empty grant: %v", err)
	}
	if err := (*policy.Grant)(nil).Redeem(); !errors.Is(err, policy.ErrNoGrant) {
		t.Errorf("no grant: %v", err)
	}
}

func TestGrantOfAWithdrawnPolicyIsVoid(t *testing.T) {
	p := builtIn(t, "calico")
	g := requireGrant(t,
		p.Decide(newAsker("calico-system", "calico-node", "typha-client").request(t)))
	p.Withdraw()
	if err := g.Redeem(); !errors.Is(err, policy.ErrGrantStale) {
		t.Errorf("redeemed: %v", err)
	}
	if err := g.InForce(); !errors.Is(err, policy.ErrGrantStale) {
		t.Errorf("in force: %v", err)
	}
}

// calico-legacy is calico with another head and another binding: line for line the same below.
func TestLegacyProfileDiffersOnlyInTheBinding(t *testing.T) {
	lines := func(name string) (head, body []string) {
		text, _ := policy.BuiltIn(name)
		all := strings.Split(string(text), "\n")
		start := slices.Index(all, "version: 1")
		return all[:start], all[start:]
	}
	_, bound := lines("calico")
	head, address := lines("calico-legacy")
	if len(bound) != len(address) {
		t.Fatalf("%d lines, and %d in calico-legacy", len(bound), len(address))
	}
	var differ []string
	for i := range bound {
		if bound[i] != address[i] {
			differ = append(differ, address[i])
		}
	}
	if !slices.Equal(differ, []string{"    pod: address"}) {
		t.Errorf("calico-legacy differs in %q", differ)
	}
	for _, line := range head {
		if !strings.HasPrefix(line, "#") {
			t.Errorf("above the version stands %q", line)
		}
	}
}

func TestParseReportsEveryMistakeWithItsLine(t *testing.T) {
	const text = `version: 1
defaults:
  grant:
    keys: [rsa-2048, rsa-1024]
    usages: [server auth, cert sign]
rules:
  - name: a
    from:
      serviceAccounts: [nowhere]
      pod: maybe
    grant:
      dnsNames: ["*.a", {service: b}, {service: c, namespace: d.e}]
      wishes: [all]
      maxLifetime: soon
  - name: a
    from:
      serviceAccounts: [x/y]
`
	_, err := policy.Parse([]byte(text),
		policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour})
	if err == nil {
		t.Fatal("the policy was taken")
	}
	for _, want := range []string{
		`line 4: rule "a": grant.keys: "rsa-1024"`, `line 5: rule "a": grant.usages: "cert sign"`,
		`line 9: rule "a": from.serviceAccounts: "nowhere"`, `line 10: rule "a": from.pod: "maybe"`,
		`line 12: rule "a": grant.dnsNames: "*.a"`,
		`line 12: rule "a": grant.dnsNames: "d.e" is not the name of a namespace`,
		`line 13: unknown key "wishes"`,
		`line 14: rule "a": grant.maxLifetime: "soon"`, `line 15: rules[1]: the name "a" is taken`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
}

func TestParseRefusesWhatIsNoName(t *testing.T) {
	for name, want := range map[string]string{
		"{service: a, port: 1}":    "line 8: a name is a text, or a mapping",
		"{namespace: a}":           "line 8: a name is a text, or a mapping",
		"{}":                       "line 8: a name is a text, or a mapping",
		"{service: a, service: b}": "line 8: a name is a text, or a mapping",
		"{service: a,\n namespace: b,\n more: c}": "line 10: a name is a text, or a mapping",
		"{service: a,\n namespace: [b]}":          "line 9: cannot unmarshal",
		"{service: a,\n namespace: \"\"}":         `line 9: rule "a": grant.dnsNames: "" is not the name of a namespace`,
		"{service: a,\n namespace: ~}":            `line 9: the key "namespace" has no value`,
		"{service: ~}":                            `line 8: the key "service" has no value`,
	} {
		text := "version: 1\nrules:\n- name: a\n  from:\n    serviceAccounts: [x/y]\n  grant:\n  " +
			"  dnsNames:\n    - " + strings.ReplaceAll(name, "\n", "\n     ")
		if _, err := policy.Parse([]byte(text), policy.Options{}); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", name, err, want)
		}
	}
}

func TestParseRefusesWhatIsNoPolicy(t *testing.T) {
	for text, want := range map[string]string{
		"":                      "empty",
		"version: 1":            "there are none",
		"version: 2\nrules: []": "must be 1",
		"version: 1\n---\na: b": "more than one YAML document",
		"]":                     "not YAML",
	} {
		if _, err := policy.Parse([]byte(text), policy.Options{}); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
}
