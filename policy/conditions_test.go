package policy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
)

// withCondition is a policy whose one rule has the condition.
func withCondition(that string) (*policy.Policy, error) {
	return policy.Parse(fmt.Appendf(nil, `version: 1
rules:
  - name: a
    from: {serviceAccounts: [calico-system/calico-node]}
    grant:
      dnsNames: [typha-client]
      ipAddresses: [pod]
      keys: [ecdsa-p256]
      usages: [server auth, client auth, digital signature, key encipherment, key agreement]
    conditions:
      - that: %q
        message: the house rule
`, that), policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour})
}

func TestConditions(t *testing.T) {
	for that, granted := range map[string]bool{
		`size(request.dnsNames) == 1`:                    true,
		`request.dnsNames.all(n, n.startsWith("typha"))`: true,
		`request.key == "rsa-2048"`:                      false,
		// none was asked for
		`"server auth" in request.usages && request.lifetime == 3600`: true,
		`requester.namespace == "calico-system"`:                      true,
		`requester.serviceAccount == "calico-typha"`:                  false,
		`"system:serviceaccounts" in requester.groups`:                true,
		`pod.node.startsWith("n-") && "10.65.0.7" in pod.ipAddresses`: true,
		`!pod.hostNetwork`: true,
		`requester.extra["authentication.kubernetes.io/pod-name"] == ["p-1"]`: true,
		// cannot be evaluated
		`requester.extra["missing"] == ["x"]`: false,
		// costs too much
		`[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, request.lifetime > 0)))))`: false,
	} {
		p, err := withCondition(that)
		must.OK(t, err)
		v := p.Decide(newAsker("calico-system", "calico-node", "typha-client").request(t))
		if _, ok := v.(*policy.Grant); ok != granted {
			t.Errorf("%s: granted is %t", that, ok)
		}
		if !granted {
			requireRefusal(t, v, policy.ConditionNotMet, "conditions[0]")
		}
	}
}

// A condition is not held against a request while facts are missing that it may look at, and is
// when they have come.
func TestConditionsWaitForFacts(t *testing.T) {
	p, err := withCondition(`"10.65.0.8" in pod.ipAddresses`)
	must.OK(t, err)
	a := newAsker("calico-system", "calico-node", "typha-client")
	a.pod.IPs = nil
	if v, waits := p.Decide(a.request(t)).(*policy.Waiting); !waits ||
		!strings.Contains(v.Missing, "the IP address of the pod") {
		t.Errorf("%+v", v)
	}
	a.pod.IPs = []netip.Addr{podIP}
	requireRefusal(t, p.Decide(a.request(t)), policy.ConditionNotMet, "the house rule")
}

// A condition that could not be right is a mistake of the policy, with its line.
func TestConditionsAreChecked(t *testing.T) {
	for that, want := range map[string]string{
		"":                        "needs both",
		"request.dnsNames ==":     "Syntax error",
		"request.labels == {}":    "undefined field",
		"size(request.dnsNames)":  "must be true or false",
		"nobody.name == 'x'":      "undeclared reference",
		"request.commonName == 7": "no matching overload",
	} {
		if _, err := withCondition(that); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), "line 11") {
			t.Errorf("%q: %v; want %q", that, err, want)
		}
	}
}
