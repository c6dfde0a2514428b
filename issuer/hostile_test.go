package issuer

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
	"hsm-signer/policy/hostile"
)

// Under a policy that allows every requester, usage and key, and every name that a pattern may:
// what must be refused is, what is harmless is not, and nothing reaches a certificate that was not
// checked.
func TestNothingThatWasNotCheckedIsIssued(t *testing.T) {
	text, err := os.ReadFile("../integration/testdata/allow-everything.yaml")
	must.OK(t, err)
	everything := parsePolicy(t, string(text))
	i := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)).issuer(t)
	var usages []policy.Usage
	for _, usage := range hostile.Usages {
		usages = append(usages, policy.Usage(usage))
	}
	outcomes := map[string]int{}
	for n, s := range hostile.Samples(t) {
		verdict := everything.Decide(policy.NewRequest(policy.Submission{
			UID: fmt.Sprint(n), PEM: s.PEM, Usages: usages,
			Requester: policy.Requester{Username: "anybody"},
		}), policy.Facts{})
		g, granted := verdict.(*policy.Grant)
		if granted && g.CheckKey() != nil {
			verdict, granted = g.CheckKey(), false
		}
		switch {
		case granted && s.Verdict == hostile.Reject:
			t.Errorf("%s: granted", s.Name)
		case !granted && s.Verdict == hostile.Accept:
			t.Errorf("%s: %+v", s.Name, verdict)
		case granted:
			s.RequireNothingElse(t, encodePEM(issue(t, i, g)[0].Raw))
		}
		outcomes[fmt.Sprintf("%s: granted is %t", s.Verdict, granted)]++
	}
	for _, outcome := range slices.Sorted(maps.Keys(outcomes)) {
		t.Logf("%4d %s", outcomes[outcome], outcome)
	}
}
