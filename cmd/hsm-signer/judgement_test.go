package main

import (
	"crypto/x509/pkix"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsm-signer/issuer"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// genericCA is a CA without constraints.
func genericCA(t *testing.T) func() *issuer.CA {
	t.Helper()
	ca, err := issuer.GenericCA()
	if err != nil {
		t.Fatal(err)
	}
	return func() *issuer.CA { return ca }
}

// constrainedCA writes the certificate of a CA that permits these names alone.
func constrainedCA(t *testing.T, domains, ranges []string) string {
	t.Helper()
	profile := issuer.CAProfile{Subject: pkix.Name{CommonName: "constrained"}, Lifetime: time.Hour}
	profile.Constraints.Permitted.DNSDomains = domains
	for _, text := range ranges {
		profile.Constraints.Permitted.IPRanges = append(profile.Constraints.Permitted.IPRanges, netip.MustParsePrefix(text))
	}
	text, err := issuer.SelfSign(profile, pkcs10test.NewKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return fileWith(t, "ca.crt", string(text))
}

func fileWith(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// "policy explain" and "policy test" judge under the CA of CA_CERT_FILE, and say so when there is
// none.
func TestVerdictsIncludeTheCA(t *testing.T) {
	request := requestFile(t, asPEM, "typha-server")
	dir := filepath.Dir(fileWith(t, "cases.yaml", `
cases:
  - name: typha
    as: system:serviceaccount:calico-system:calico-typha
    pod: {name: p, ipAddresses: [10.65.0.7]}
    dnsNames: [typha-server]
    ipAddresses: [10.65.0.7]
    expect: granted
`))
	const reason = `rule calico-typha: request.dnsNames cannot be certified by the CA: DNS name "typha-server" is not permitted by any constraint`
	for _, c := range []struct {
		ca     string
		code   int
		reason string
	}{
		{"", 0, ""},
		{constrainedCA(t, []string{"typha-server"}, nil), 0, ""},
		{constrainedCA(t, []string{"elsewhere"}, nil), exitRefused, reason},
	} {
		for _, args := range [][]string{append([]string{"policy", "explain", request}, typhaFlags...), {"policy", "test", dir}} {
			out, stderr, code := command(t, append(args, "--ca-cert-file", c.ca)...)
			if code != c.code || !strings.Contains(out, c.reason) {
				t.Errorf("%v: exit code %d: %s%s", args, code, out, stderr)
			}
			if noted := strings.Contains(stderr, "the constraints of the CA were not checked"); noted != (c.ca == "") {
				t.Errorf("%v under the CA %q: %s", args, c.ca, stderr)
			}
		}
	}
}

// A rule of which a CA can issue nothing is a fault of the configuration, wherever the two meet.
func TestRulesThatTheCANeverServes(t *testing.T) {
	ca := constrainedCA(t, []string{"elsewhere"}, []string{"192.0.2.0/24"})
	rules := fileWith(t, "policy.yaml", `
version: 1
rules:
  - name: lost
    from: {serviceAccounts: [ns/sa]}
    grant: {dnsNames: [one, "*.example.com"], ipAddresses: [10.0.0.0/8], keys: [ecdsa-p256], usages: [digital signature]}
`)
	_, stderr, code := command(t, "policy", "explain", requestFile(t, asPEM, "one"), "--policy", rules, "--ca-cert-file", ca)
	if want := `POLICY_FILE: rule "lost": the CA CN=constrained can certify none of the rule's names`; code != exitConfig || !strings.Contains(stderr, want) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
