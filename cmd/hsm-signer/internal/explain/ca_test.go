package explain

import (
	"strings"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
)

// "policy explain" judges under the CA of CA_CERT_FILE, and reports it if there is none.
func TestVerdictsIncludeTheCA(t *testing.T) {
	request := fixture.RequestFile(t, fixture.AsPEM, "typha-server")
	fixture.RequireJudgedUnderCA(t, command,
		append([]string{"policy", "explain", request}, fixture.TyphaFlags...)...)
}

// A rule of which a CA can issue nothing is a fault of the configuration, wherever the two meet.
func TestRulesThatTheCANeverServes(t *testing.T) {
	ca := fixture.ConstrainedCA(t, []string{"elsewhere"}, []string{"192.0.2.0/24"})
	rules := fixture.File(t, "policy.yaml", `
version: 1
rules:
  - name: lost
    from: {serviceAccounts: [ns/sa]}
    grant:
      dnsNames: [one, "*.example.com"]
      ipAddresses: [10.0.0.0/8]
      keys: [ecdsa-p256]
      usages: [digital signature]
`)
	_, stderr, code := command(t, "policy", "explain", fixture.RequestFile(t, fixture.AsPEM, "one"),
		"--policy", rules, "--ca-cert-file", ca)
	want := `POLICY_FILE: rule "lost": the CA CN=constrained can certify none of the rule's names`
	if code != exit.Config || !strings.Contains(stderr, want) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
