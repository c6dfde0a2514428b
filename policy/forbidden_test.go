package policy_test

import (
	"net/netip"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
)

// An address that is known to be another's is certified for no pod, also one on the network of its
// node, whose own address is its. A rule that writes the address out grants it.
func TestForbiddenAddresses(t *testing.T) {
	const text = `
version: 1
defaults:
  from: {serviceAccounts: [calico-system/calico-node]}
  grant:
    dnsNames: [typha-client]
    keys: [ecdsa-p256]
    usages: [server auth, client auth, digital signature, key encipherment, key agreement]
rules:
  - name: pods
    grant: {ipAddresses: [pod]}
`
	clusterIP, node := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("192.0.2.10")
	parse := func(text string, forbidden ...netip.Addr) *policy.Policy {
		t.Helper()
		return must.Value(policy.Parse([]byte(text),
			policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour,
				ForbiddenAddresses: forbidden}))(t)
	}
	asking := func(ip netip.Addr) (*policy.Request, policy.Facts) {
		// A calico-node on a control-plane node; the second address is what a kubelet that lies
		// would report.
		a := newAsker("calico-system", "calico-node", "typha-client")
		a.ips, a.pod.HostNetwork, a.pod.IPs = []netip.Addr{ip}, true, []netip.Addr{node, clusterIP}
		return a.request(t)
	}
	forbidding := parse(text, clusterIP)
	requireGrant(t, parse(text).Decide(asking(clusterIP))) // so that the test shows the difference
	requireRefusal(t, forbidding.Decide(asking(clusterIP)), policy.NameNotAllowed, "10.96.0.1")
	requireGrant(t, forbidding.Decide(asking(node)))
	for more, granted := range map[string]bool{"10.96.0.0/12": false, "10.96.0.1": true} {
		p := parse(text+"  - name: more\n    grant: {ipAddresses: ["+more+"]}\n", clusterIP)
		if granted {
			requireGrant(t, p.Decide(asking(clusterIP)))
			continue
		}
		requireRefusal(t, p.Decide(asking(clusterIP)), policy.NameNotAllowed, "10.96.0.1")
	}
	if forbidding.Hash() == parse(text).Hash() {
		t.Error("two policies that decide differently have one hash")
	}
}
