package validate

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/cli/clitest"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
)

const mistakenPolicy = `version: 1
rules:
  - name: x
    from: {serviceAccounts: [a/b]}
    grant:
      dnsNames: [x.example.com]
      keys: [dsa]
      usages: [server auth, digital signature]
      colour: red
`

// Every mistake is listed with its line, offline, and so is what "check" warns of.
func TestPolicyValidate(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		// anybody's: nothing is signed by it
		must.OK(t, os.WriteFile(file, []byte(text), 0o666))
		return file
	}
	mistaken, broken, empty := write("mistaken.yaml", mistakenPolicy), write("broken.yaml",
		"version: 1\nrules: [\n"), write("empty.yaml", "")
	wide := fixture.Path(t, "integration/testdata/allow-everything.yaml")
	for file, want := range map[string]struct {
		verdict, text string
		line, code    int
	}{
		mistaken: {"invalid", "  line 7: rule \"x\": grant.keys: ", 7, 2},
		broken:   {"invalid", "  line 2: the policy is not YAML: ", 2, 2},
		empty:    {"invalid", "the policy is empty", 0, 2},
		wide: {"valid",
			"  warning: rule everything: ANYONE (from.users: *) may have ANY name", 0, 0},
		"calico":            {"valid", "calico: valid, ", 0, 0},
		"calico-enterprise": {"valid", "calico-enterprise: valid, ", 0, 0},
	} {
		out, stderr, code := command(t, "policy", "validate", file)
		if code != want.code || !strings.HasPrefix(out, file+": "+want.verdict) ||
			!strings.Contains(out, want.text) {
			t.Errorf("%s: exit code %d: %s%s", file, code, out, stderr)
		}
		out, _, code = command(t, "policy", "validate", file, "--output", "json")
		var r policyReport
		must.OK(t, json.Unmarshal([]byte(out), &r))
		valid := want.verdict == "valid"
		if code != want.code || r.File != file || r.Verdict != want.verdict ||
			valid != (len(r.Mistakes) == 0) || valid != (len(r.Rules) > 0) {
			t.Errorf("%s: exit code %d: %s", file, code, out)
		}
		if !valid && r.Mistakes[len(r.Mistakes)-1].Line != want.line {
			t.Errorf("%s: %+v", file, r.Mistakes)
		}
		if (file == wide) != (len(r.Warnings) > 0) {
			t.Errorf("%s: %+v", file, r.Warnings)
		}
	}
	if out, _, code := command(t, "policy", "validate", mistaken); code != 2 ||
		!strings.Contains(out, "line 9: unknown key \"colour\"") ||
		!strings.Contains(out, "2 mistakes") {
		t.Errorf("exit code %d: %s", code, out)
	}
	out, stderr, code := command(t, "policy", "validate", filepath.Join(dir, "missing"), "calico")
	if code != 1 || !strings.Contains(stderr, "missing") ||
		!strings.Contains(out, "calico: valid") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	if _, stderr, code := command(t, "policy", "validate"); code != 4 ||
		!strings.Contains(stderr, "policy validate --help") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// A rule of which the CA can issue nothing is a mistake of its own, as is each other one.
func TestPolicyValidateUnderACA(t *testing.T) {
	rules := fixture.File(t, "policy.yaml", `version: 1
rules:
  - {name: lost, from: {serviceAccounts: [a/b]}, grant: {dnsNames: [x.example.com], keys: [ecdsa-p256], usages: [digital signature]}}
  - {name: lost too, from: {serviceAccounts: [a/c]}, grant: {dnsNames: [y.example.com], keys: [ecdsa-p256], usages: [digital signature]}}
`)
	out, _, code := command(t, "policy", "validate", rules, "--ca-cert-file",
		fixture.ConstrainedCA(t, []string{"elsewhere"}, nil), "--output", "json")
	var r policyReport
	must.OK(t, json.Unmarshal([]byte(out), &r))
	if code != 2 || r.Verdict != "invalid" || len(r.Mistakes) != 2 || len(r.Rules) != 0 ||
		!strings.HasPrefix(r.Mistakes[1].Message, `rule "lost too": `) {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return clitest.Run(t, NewCommand(), args...)
}
