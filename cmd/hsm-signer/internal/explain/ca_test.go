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
	const reason = `rule calico-typha: request.dnsNames cannot be certified by the CA: DNS name "typha-server" is not permitted by any constraint`
	for _, c := range []struct {
		ca     string
		code   int
		reason string
	}{
		{"", 0, ""},
		{fixture.ConstrainedCA(t, []string{"typha-server"}, nil), 0, ""},
		{fixture.ConstrainedCA(t, []string{"elsewhere"}, nil), exit.Refused, reason},
	} {
		args := append([]string{"policy", "explain", request, "--ca-cert-file", c.ca},
			fixture.TyphaFlags...)
		out, stderr, code := command(t, args...)
		if code != c.code || !strings.Contains(out, c.reason) {
			t.Errorf("%v: exit code %d: %s%s", args, code, out, stderr)
		}
		if noted := strings.Contains(stderr,
			"the constraints of the CA were not checked"); noted != (c.ca == "") {
			t.Errorf("under the CA %q: %s", c.ca, stderr)
		}
	}
}

// A rule of which a CA can issue nothing is a fault of the configuration, wherever the two meet.
func TestRulesThatTheCANeverServes(t *testing.T) {
	ca := fixture.ConstrainedCA(t, []string{"elsewhere"}, []string{"192.0.2.0/24"})
	rules := fixture.File(t, "policy.yaml", `
version: 1
rules:
  - name: lost
    from: {serviceAccounts: [ns/sa]}
    grant: {dnsNames: [one, "*.example.com"], ipAddresses: [10.0.0.0/8], keys: [ecdsa-p256], usages: [digital signature]}
`)
	_, stderr, code := command(t, "policy", "explain", fixture.RequestFile(t, fixture.AsPEM, "one"),
		"--policy", rules, "--ca-cert-file", ca)
	if want := `POLICY_FILE: rule "lost": the CA CN=constrained can certify none of the rule's names`; code != exit.Config || !strings.Contains(stderr, want) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
