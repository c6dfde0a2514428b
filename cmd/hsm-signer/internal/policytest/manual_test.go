package policytest

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
	"hsm-signer/policy"
)

// What the manual shows is right: each policy on a page can be read, and the page's cases pass with
// the first.
func TestPoliciesOfTheManual(t *testing.T) {
	policies := policiesOn(t, "docs/policy.md", 2, 2)
	if p := policies[1].Budget(); p.String() != policies[0].Budget().String() {
		t.Errorf("the manual says that the budget is %v when nothing is said; it is %v", p,
			policies[0].Budget())
	}
	policiesOn(t, "docs/pods.md", 1, 2)
}

// policiesOn returns the policies on a page, which must have so many, and so many cases that pass.
func policiesOn(t *testing.T, page string, want, cases int) (policies []*policy.Policy) {
	t.Helper()
	manual, err := os.ReadFile(fixture.Path(t, page))
	must.OK(t, err)
	passed := 0
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(manual, -1) {
		switch text := string(block[1]); {
		case strings.HasPrefix(text, "version: 1"):
			p, err := policy.Parse(block[1], policy.Options{ClusterDomain: "cluster.local",
				TrustDomain: "example.org", MaxLifetime: time.Hour})
			if err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
			policies = append(policies, p)
		case strings.HasPrefix(text, "cases:"):
			dir := t.TempDir()
			must.OK(t, os.WriteFile(filepath.Join(dir, "cases.yaml"), block[1], 0o600))
			var out bytes.Buffer
			if err := testPolicy(policies[0], []string{dir}, "text", &out); err != nil {
				t.Errorf("%v:\n%s", err, &out)
			}
			passed += strings.Count(out.String(), "ok ")
		}
	}
	if len(policies) != want || passed != cases {
		t.Fatalf("%s has %d policies and %d cases that pass; want %d and %d", page, len(policies),
			passed, want, cases)
	}
	return policies
}
