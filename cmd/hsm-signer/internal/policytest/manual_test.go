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
	"hsm-signer/policy"
)

// What docs/policy.md shows is right: each policy in it can be read, and its cases pass with the
// first.
func TestPoliciesOfTheManual(t *testing.T) {
	manual, err := os.ReadFile(fixture.Path(t, "docs/policy.md"))
	if err != nil {
		t.Fatal(err)
	}
	var policies []*policy.Policy
	passed := 0
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(manual, -1) {
		switch text := string(block[1]); {
		case strings.HasPrefix(text, "version: 1"):
			p, err := policy.Parse(block[1],
				policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour})
			if err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
			policies = append(policies, p)
		case strings.HasPrefix(text, "cases:"):
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "cases.yaml"), block[1], 0o600); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := testPolicy(policies[0], []string{dir}, "text", &out); err != nil {
				t.Errorf("%v:\n%s", err, &out)
			}
			passed += strings.Count(out.String(), "ok ")
		}
	}
	if len(policies) != 2 || passed != 2 {
		t.Errorf("%d policies and %d cases that pass; the manual has 2 of each", len(policies),
			passed)
	}
	if p := policies[1].Budget(); p.String() != policies[0].Budget().String() {
		t.Errorf("the manual says that the budget is %v when nothing is said; it is %v", p,
			policies[0].Budget())
	}
}
