package policy_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
)

// language is a policy that uses what Calico's profile does not.
const language = `version: 1
defaults:
  grant:
    keys: [ecdsa-p256]
    usages: [server auth, client auth, digital signature, key encipherment, key agreement]
rules:
  - name: any-web
    from:
      serviceAccounts: ["*/web"]
    grant:
      dnsNames: [{pattern: "*.web.example.com"}]
      ipAddresses: [pod, 192.0.2.7, 127.0.0.1, 198.51.100.0/24, 168.0.0.0/7]
  - name: any-of-shop
    from:
      serviceAccounts: ["shop/*"]
    grant:
      dnsNames: [{pattern: "**.shop.example.com"}]
  - name: machines
    from:
      users: ["machine:*"]
      groups: [machines, robots]
      pod: none
    grant:
      dnsNames: [{pattern: "*"}]
`

func TestLanguage(t *testing.T) {
	p, err := policy.Parse([]byte(language),
		policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour})
	must.OK(t, err)
	for _, c := range []struct {
		namespace, account, name string
		ip                       string // in addition to the pod's own
		granted                  bool
	}{
		{"a", "web", "x.web.example.com", "", true},
		{"b", "web", "y.web.example.com", "192.0.2.7", true},
		{"a", "web", "web.example.com", "", false},
		{"a", "web", "x.y.web.example.com", "", false},
		{"a", "web", "xweb.example.com", "", false},
		{"a", "web2", "x.web.example.com", "", false},
		{"a", "web", "x.web.example.com", "198.51.100.9", true},
		{"a", "web", "x.web.example.com", "198.51.101.9", false},
		{"a", "web", "x.web.example.com", "127.0.0.1", true}, // written out
		{"a", "web", "x.web.example.com", "169.1.2.3", true},
		{"a", "web", "x.web.example.com", "169.254.169.254", false}, // never by a prefix
		{"a", "web", "x.web.example.com", "168.63.129.16", false},
		{"shop", "till", "x.shop.example.com", "", true},
		{"shop", "till", "x.y.shop.example.com", "", true},
		{"shop", "till", "shop.example.com", "", false},
		{"shop", "till", "x.shop.example.com.evil", "", false},
		{"shops", "till", "x.shop.example.com", "", false},
	} {
		a := newAsker(c.namespace, c.account, c.name)
		if c.namespace != "a" && c.account != "web" {
			a.ips = nil // that rule gives none
		}
		if c.ip != "" {
			a.ips = append(a.ips, netip.MustParseAddr(c.ip))
		}
		if _, granted := p.Decide(a.request(t)).(*policy.Grant); granted != c.granted {
			t.Errorf("%+v: granted is %t", c, granted)
		}
	}
}

// Users need no pod, and must be in one of the groups.
func TestUsersAndGroups(t *testing.T) {
	p, err := policy.Parse([]byte(language),
		policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour})
	must.OK(t, err)
	for _, c := range []struct {
		user    string
		groups  []string
		name    string
		granted bool
	}{
		{"machine:7", []string{"robots"}, "seven", true},
		{"machine:7", []string{"people"}, "seven", false},
		{"machine", []string{"robots"}, "seven", false},
		{"machine:7", []string{"robots"}, "seven.of.nine", false},
		{"machine:7", []string{"robots"}, "SEVEN", true},
		{"machine:7", []string{"robots"}, "kubernetes", false}, // never by a pattern
		{"machine:7", []string{"robots"}, "Kubernetes", false},
		{"machine:7", []string{"robots"}, "localhost", false},
	} {
		a := newAsker("x", "y", c.name)
		a.ips, a.extra, a.pod = nil, nil, nil
		r, facts := a.request(t)
		r.Requester.Username, r.Requester.Groups = c.user, c.groups
		g, granted := p.Decide(r, facts).(*policy.Grant)
		if granted != c.granted {
			t.Errorf("%+v: granted is %t", c, granted)
		}
		if want := strings.ToLower(c.name); granted &&
			(commonName(g) != want || g.DNSNames()[0] != want) {
			t.Errorf("%+v: granted are %q and %v, in lower case they should be", c, commonName(g),
				g.DNSNames())
		}
	}
}

func TestLanguageMistakes(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{`"*/web"`, `"*/we*"`, `line 9: rule "any-web": from.serviceAccounts`},
		{`"*.web.example.com"`, `"x*.web.example.com"`, `not a whole label`},
		{`"*.web.example.com"`, `"*.**.example.com"`, `behind the first label`},
		{`{pattern: "*"}`, `{pattern: "*", namespace: x}`, `a name is a text`},
		{`{pattern: "*"}`, `{pattern: "*", service: x}`, `a name is a text`},
		{"      pod: none\n", "", `only service accounts have pods`},
		{`"machine:*"`, `"ma*chine"`, `from.users: "ma*chine"`},
		{`192.0.2.7`, `192.0.2.300`, `grant.ipAddresses: "192.0.2.300"`},
		{`198.51.100.0/24`, `198.51.100.1/24`, `grant.ipAddresses: "198.51.100.1/24"`},
		{`dnsNames: [{pattern: "*"}]`, `commonNames: [{pattern: "*"}]`, `must be written out`},
	} {
		text := strings.Replace(language, c.old, c.new, 1)
		if _, err := policy.Parse([]byte(text),
			policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour}); err == nil ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.new, err, c.want)
		}
	}
}

// Groups of a rule narrow whom the defaults name; they do not take their place.
func TestGroupsNarrowTheDefaults(t *testing.T) {
	const text = `version: 1
defaults:
  from: {serviceAccounts: [calico-system/calico-node]}
  grant:
    ipAddresses: [pod]
    keys: [ecdsa-p256]
    usages: [server auth, client auth, digital signature, key encipherment, key agreement]
rules:
  - name: a
    from: {groups: ["system:authenticated"]}
    grant: {dnsNames: [typha-client]}
`
	p, err := policy.Parse([]byte(text),
		policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour})
	must.OK(t, err)
	requireGrant(t, p.Decide(newAsker("calico-system", "calico-node", "typha-client").request(t)))
	requireRefusal(t, p.Decide(newAsker("calico-system", "anybody", "typha-client").request(t)),
		policy.RequesterNotAllowed, "anybody")
}

// Some clouds give pods addresses of a range that was reserved; by a prefix it is given to nobody.
func TestPodMayHaveAnAddressForFutureUse(t *testing.T) {
	a := newAsker("calico-system", "calico-node", "typha-client")
	a.ips = []netip.Addr{netip.MustParseAddr("240.10.0.7")}
	a.pod.IPs = a.ips
	requireGrant(t, builtIn(t, "calico").Decide(a.request(t)))
}

// specialAddresses are those that no pod may have, each class with the edges of its prefixes.
var specialAddresses = []string{
	"127.0.0.2", "::1", "0.0.0.0", "::", "0.1.2.3", "169.254.169.254", "169.254.170.2",
	"169.254.170.23", "192.0.0.192",
	"fe80::a9fe:a9fe", "224.0.0.1", "239.255.255.250", "ff02::1", "255.255.255.255",
	"100.100.100.200", "168.63.129.16", // Alibaba, Azure
	"fd00:ec2::254", "fd00:ec2::23", "fd00:ec2::253", // AWS: metadata, credentials of EKS pods, DNS
	// Google, Oracle, Scaleway, Linode
	"fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:c1::a9fe:0", "fd00:42::42", "fd00:a9fe:a9fe::1",
	"::a00:1", "64:ff9b::a00:1", "64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
	"64:ff9b:1:a00:1::", "::ffff:0:a9fe:a9fe",
	"2001::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff",
	"2002:a00:1::1",
	"2001:db8::5efe:a00:1", "2001:db8::200:5efe:a9fe:a9fe", // ISATAP
}

// plainAddresses are no special ones, although they are next to them.
var plainAddresses = []string{
	"8.8.8.8", "2001:db8::1", "fd00::1", "100.64.0.1", "100.100.100.199", "fd00:ec1::254",
	"fd20:ce::253", "fd20:ce::1:254",
	"fd00:c1::a9ff:0", "64:ff9a::1", "64:ff9b:2::1", "2001:1::1", "2003::1", "2001:db8::5eff:a00:1",
	"2001:db8::100:5efe:a00:1",
}

// A prefix that holds all addresses gives none of those that must be written out.
func TestSpecialAddressesAreNoOnesByAPrefix(t *testing.T) {
	everything := strings.Replace(language, "168.0.0.0/7]", "0.0.0.0/0, \"::/0\"]", 1)
	tried := map[string]bool{"127.0.0.1": true, "240.0.0.1": false} // written out; for future use
	for _, text := range specialAddresses {
		tried[text] = false
	}
	for _, text := range plainAddresses {
		tried[text] = true
	}
	for text, granted := range tried {
		a := newAsker("a", "web", "x.web.example.com")
		a.ips = []netip.Addr{netip.MustParseAddr(text)}
		if _, is := parse(t, everything).Decide(a.request(t)).(*policy.Grant); is != granted {
			t.Errorf("%s: granted is %t", text, is)
		}
	}
}

// A pod that says it has a special address does not get it, and any other that it has.
func TestSpecialAddressesAreNoPods(t *testing.T) {
	p := builtIn(t, "calico")
	for _, text := range slices.Concat(specialAddresses, plainAddresses) {
		a := newAsker("calico-system", "calico-node", "typha-client")
		a.ips = []netip.Addr{netip.MustParseAddr(text)}
		a.pod.IPs = a.ips
		v := p.Decide(a.request(t))
		if slices.Contains(plainAddresses, text) {
			requireGrant(t, v)
			continue
		}
		requireRefusal(t, v, policy.NameNotAllowed,
			"request.ipAddresses "+text+" is not allowed by this rule")
	}
}
