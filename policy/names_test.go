package policy_test

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// names is a policy of names of every kind, written out and derived.
const names = `version: 1
defaults:
  grant:
    keys: [ecdsa-p256]
    usages: [server auth, client auth, digital signature, key encipherment, key agreement]
rules:
  - name: identity
    from: {serviceAccounts: ["*/*"]}
    grant:
      dnsNames: ["{serviceAccount}.{namespace}.example.com", "*.{namespace}.svc", "*.apps.example.com", {pattern: "**.wide.example.com"}]
      uris: ["spiffe://example.org/ns/{namespace}/sa/{serviceAccount}", "https://fixed.example.com/a"]
      emailAddresses: ["{serviceAccount}@{namespace}.example.com", ops@example.com]
      commonNames: ["{serviceAccount}", fixed]
      defaultLifetime: 1h
      maxLifetime: 24h
  - name: on-the-gateway
    from:
      serviceAccounts: [edge/gateway]
      extra: {authentication.kubernetes.io/node-name: [gateway-1, gateway-2]}
    grant:
      subject: kept
      dnsNames: [gateway]
`

func parse(t testing.TB, text string) *policy.Policy {
	t.Helper()
	return must.Value(policy.Parse([]byte(text),
		policy.Options{ClusterDomain: "cluster.local", MaxLifetime: 8760 * time.Hour}))(t)
}

func TestNamesOfEveryKind(t *testing.T) {
	type request = pkcs10test.Request
	for _, c := range []struct {
		who     string
		asks    request
		granted bool
	}{
		{"shop/till", request{DNSNames: []string{"till.shop.example.com"}}, true},
		{"shop/till", request{DNSNames: []string{"TILL.shop.example.com"}}, true},
		{"shop/till", request{DNSNames: []string{"till.bank.example.com"}}, false},
		// a dot in a name reaches no further
		{"shop/till.bank", request{DNSNames: []string{"till.bank.shop.example.com"}}, false},
		{"shop/till", request{DNSNames: []string{"*.shop.svc"}}, true},
		{"shop/till", request{DNSNames: []string{"*.bank.svc"}}, false},
		// kubernetes.default.svc is among them
		{"default/till", request{DNSNames: []string{"*.default.svc"}}, false},
		{"shop/till", request{DNSNames: []string{"*.apps.example.com"}}, true},
		{"shop/till", request{DNSNames: []string{"x.apps.example.com"}}, false},
		// never by a pattern
		{"shop/till", request{DNSNames: []string{"*.wide.example.com"}}, false},
		{"shop/till", request{DNSNames: []string{"x.wide.example.com"}}, true},
		{"shop/till", request{URIs: []string{"spiffe://example.org/ns/shop/sa/till"}}, true},
		{"shop/till.a", request{URIs: []string{"spiffe://example.org/ns/shop/sa/till.a"}}, true},
		{"shop/till", request{URIs: []string{"spiffe://example.org/ns/bank/sa/till"}}, false},
		{"shop/till", request{URIs: []string{"spiffe://example.org/ns/shop/sa/till/x"}}, false},
		{"shop/till",
			request{URIs: []string{"spiffe://example.org/ns/{namespace}/sa/{serviceAccount}"}},
			false},
		{"shop/till",
			request{URIs: []string{"https://fixed.example.com/a",
				"spiffe://example.org/ns/shop/sa/till"}}, true},
		{"shop/till", request{Emails: []string{"till@shop.example.com", "ops@example.com"}}, true},
		{"shop/till", request{Emails: []string{"ops@shop.example.com"}}, false},
		{"shop/till",
			request{Subject: pkix.Name{CommonName: "till"}, Emails: []string{"ops@example.com"}},
			true},
		{"shop/till",
			request{Subject: pkix.Name{CommonName: "fixed"}, Emails: []string{"ops@example.com"}},
			true},
		{"shop/till",
			request{Subject: pkix.Name{CommonName: "other"}, Emails: []string{"ops@example.com"}},
			false},
		// a common name alone
		{"shop/till", request{Subject: pkix.Name{CommonName: "till"}}, false},
	} {
		namespace, account, _ := strings.Cut(c.who, "/")
		g, granted := parse(t,
			names).
			Decide(newAsker(namespace, account, "-").requestOf(c.asks.PEM(t))).(*policy.Grant)
		if granted != c.granted {
			t.Errorf("%s, %+v: granted is %t", c.who, c.asks, granted)
		}
		if granted &&
			(!slices.Equal(g.URIs(), c.asks.URIs) ||
				!slices.Equal(g.EmailAddresses(), c.asks.Emails)) {
			t.Errorf("%s, %+v: granted are %v and %v", c.who, c.asks, g.URIs(), g.EmailAddresses())
		}
	}
}

// A service in a namespace of its requester's choice has no name that must be written out, and has
// it where it is.
func TestReservedNamesOfServices(t *testing.T) {
	const text = `version: 1
rules:
  - name: a
    from: {serviceAccounts: ["*/a"]}
    grant:
      dnsNames: [SERVICE]
      ipAddresses: [pod]
      keys: [ecdsa-p256]
      usages: [server auth, client auth, digital signature, key encipherment, key agreement]
`
	for _, c := range []struct {
		service, namespace, name string
		granted                  bool
	}{
		{"service: gateway", "edge", "gateway.edge", true},
		{"service: gateway", "localhost", "gateway.localhost", false},
		{"service: gateway", "localhost", "gateway.localhost.svc", true},
		{"{service: gateway, namespace: localhost}", "edge", "gateway.localhost", true},
		{"service: kubernetes", "edge", "kubernetes", true}, // which is warned of
		{"service: kubernetes", "default", "kubernetes.default.svc", false},
		{"{service: kubernetes, namespace: default}", "edge", "kubernetes.default.svc", true},
	} {
		p := parse(t, strings.Replace(text, "SERVICE", c.service, 1))
		asker := newAsker(c.namespace, "a", c.name)
		if _, granted := p.Decide(asker.request(t)).(*policy.Grant); granted != c.granted {
			t.Errorf("%+v: granted is %t", c, granted)
		}
	}
}

func TestLifetimes(t *testing.T) {
	for asked, want := range map[time.Duration]time.Duration{0: time.Hour,
		2 * time.Hour: 2 * time.Hour, 48 * time.Hour: 24 * time.Hour} {
		a := newAsker("shop", "till", "till.shop.example.com")
		a.ips, a.lifetime, a.cn = nil, asked, ""
		if g := requireGrant(t, parse(t, names).Decide(a.request(t))); g.Lifetime() != want {
			t.Errorf("asked for %s: granted %s, want %s", asked, g.Lifetime(), want)
		}
	}
}

func TestExtraNarrows(t *testing.T) {
	for node, granted := range map[string]bool{"gateway-2": true, "n-1": false} {
		a := newAsker("edge", "gateway", "gateway")
		a.ips = nil
		a.pod.Node, a.extra["authentication.kubernetes.io/node-name"] = node, []string{node}
		if _, is := parse(t, names).Decide(a.request(t)).(*policy.Grant); is != granted {
			t.Errorf("on node %s: granted is %t", node, is)
		}
	}
}

func TestKeptSubject(t *testing.T) {
	subject := func(change func(*pkix.Name)) pkix.Name {
		name := pkix.Name{CommonName: "Gateway", Country: []string{"CH"},
			Organization: []string{"Example"}, ExtraNames: nil}
		change(&name)
		return name
	}
	oidO, oidEmail, oidDC := asn1.ObjectIdentifier{2, 5, 4, 10},
		asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1},
		asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}
	for _, c := range []struct {
		subject pkix.Name
		fault   string // empty: granted
	}{
		{subject(func(*pkix.Name) {}), ""},
		{subject(func(n *pkix.Name) {
			n.ExtraNames = []pkix.AttributeTypeAndValue{{Type: oidDC, Value: "com"}}
		}), ""},
		{subject(func(n *pkix.Name) {
			n.Organization = []string{"system:masters"}
		}), `request.subject.O "system:masters"`},
		{subject(func(n *pkix.Name) {
			n.Organization = []string{" system:masters"}
		}), `request.subject.O " system:masters"`},
		{subject(func(n *pkix.Name) {
			n.Organization = []string{"SYSTEM:masters"}
		}), `request.subject.O "SYSTEM:masters"`},
		{subject(func(n *pkix.Name) {
			n.ExtraNames = []pkix.AttributeTypeAndValue{{Type: oidO, Value: "system:masters"}}
		}), `request.subject.O "system:masters"`},
		{subject(func(n *pkix.Name) {
			n.Organization = []string{"kubeadm:cluster-admins"}
		}), `request.subject.O "kubeadm:cluster-admins"`},
		{subject(func(n *pkix.Name) {
			n.OrganizationalUnit = []string{"kubeadm:cluster-admins"}
		}), `request.subject.OU "kubeadm:cluster-admins"`},
		{subject(func(n *pkix.Name) {
			n.Organization = []string{"Example:admins"}
		}), `request.subject.O "Example:admins" is the name of a group`},
		{subject(func(n *pkix.Name) {
			n.Organization = []string{"OPS"}
		}), `request.subject.O "OPS" is the name of a group`},
		{subject(func(n *pkix.Name) { n.Organization = []string{"ops2"} }), ""},
		{subject(func(n *pkix.Name) {
			n.Organization = []string{strings.Repeat("x", 65)}
		}), "longer than 64"},
		{subject(func(n *pkix.Name) { n.Organization = []string{strings.Repeat("ü", 64)} }), ""},
		{subject(func(n *pkix.Name) { n.Country = []string{"ch"} }), "request.subject.C"},
		{subject(func(n *pkix.Name) { n.SerialNumber = "a@b" }), "request.subject.serialNumber"},
		{subject(func(n *pkix.Name) {
			n.ExtraNames = []pkix.AttributeTypeAndValue{{Type: oidDC, Value: "zürich"}}
		}), "request.subject.DC"},
		{subject(func(n *pkix.Name) {
			n.ExtraNames = []pkix.AttributeTypeAndValue{{Type: oidEmail, Value: "a@b"}}
		}), "request.subject.emailAddress"},
	} {
		a := newAsker("edge", "gateway", "gateway")
		a.pod.Node, a.extra["authentication.kubernetes.io/node-name"] = "gateway-1",
			[]string{"gateway-1"}
		verdict := parse(t,
			names+"reservedGroups: [\"example:*\", ops]\n").
			Decide(a.requestOf(pkcs10test.Request{Subject: c.subject,
				DNSNames: []string{"gateway"}}.PEM(t)))
		if c.fault != "" {
			requireRefusal(t, verdict, policy.NameNotAllowed, c.fault)
			continue
		}
		g := requireGrant(t, verdict)
		if len(g.Subject()) < 3 || commonName(g) != "gateway" {
			t.Errorf("granted the subject %v", g.Subject())
		}
	}
}

// An API server that trusts the CA for clients takes the common name for a user. None of
// Kubernetes' own users can be one: a rule cannot write it out, and no rule grants what is no DNS
// name.
func TestNoCommonNameIsAUserOfKubernetes(t *testing.T) {
	for _, name := range []string{"system:kube-scheduler", "system:node:n-1", "kubeadm:x"} {
		if found := mistakes(t,
			strings.Replace(names, "commonNames: [", "commonNames: [\""+name+"\", ",
				1)); len(found) == 0 || !strings.Contains(found[0], name) {
			t.Errorf("a rule may write out the common name %s: %v", name, found)
		}
		for _, subject := range []string{"rebuilt", "kept"} {
			p := parse(t, fmt.Sprintf(anyNames, subject))
			a := newAsker("edge", "gateway", "x.example.com")
			a.cn, a.ips = name, nil
			requireRefusal(t, p.Decide(a.request(t)), policy.NameNotAllowed, "request.commonName")
		}
	}
}

// anyNames is a rule that grants every name that a pattern may.
const anyNames = `version: 1
rules:
  - name: all
    from: {serviceAccounts: ["*/*"]}
    grant:
      dnsNames: [{pattern: "**"}]
      subject: %s
      keys: [ecdsa-p256]
      usages: [server auth, client auth, digital signature, key encipherment, key agreement]
`

func TestReservedGroupsAreChecked(t *testing.T) {
	for _, group := range []string{"", "*", "a*b", " x"} {
		text := fmt.Sprintf(anyNames, "kept") + fmt.Sprintf("reservedGroups: [%q]\n", group)
		if found := mistakes(t, text); len(found) != 1 ||
			!strings.Contains(found[0], "line 10: reservedGroups: "+strconv.Quote(group)) {
			t.Errorf("%q: %v", group, found)
		}
	}
}

func TestRebuiltSubjectIsTheCommonNameAlone(t *testing.T) {
	g := requireGrant(t,
		builtIn(t,
			"calico").Decide(newAsker("calico-system", "calico-node", "typha-client").request(t)))
	if s := g.Subject(); len(s) != 1 || s[0].Name != "CN" || s[0].Value != "typha-client" {
		t.Errorf("granted the subject %v", s)
	}
}
