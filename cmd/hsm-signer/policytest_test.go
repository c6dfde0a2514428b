package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const testCases = `cases:
  - name: own name
    as: system:serviceaccount:calico-system:calico-typha
    pod: {name: typha-1, ipAddresses: [10.65.0.7]}
    dnsNames: [typha-server]
    ipAddresses: [10.65.0.7]
    key: rsa-2048
    lifetime: 24h
    expect: granted
    rule: calico-typha
  - name: no address yet
    as: system:serviceaccount:calico-system:calico-typha
    pod: {name: typha-1}
    dnsNames: [typha-server]
    ipAddresses: [10.65.0.7]
    expect: waiting
  - name: another's name
    as: system:serviceaccount:calico-system:calico-typha
    pod: {name: typha-1}
    dnsNames: [typha-client]
    expect: refused
    reason: NameNotAllowed
`

// runPolicyTest runs the cases in the text against the built-in policy.
func runPolicyTest(t *testing.T, text string) (stdout, stderr string, code int) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cases.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return command(t, "policy", "test", dir)
}

func TestPolicyTestPasses(t *testing.T) {
	if out, stderr, code := runPolicyTest(t, testCases); code != 0 || !strings.Contains(out, "3 passed, 0 failed") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
}

func TestPolicyTestSaysWhatDiffers(t *testing.T) {
	for old, c := range map[string]struct{ now, want string }{
		"rule: calico-typha":       {"rule: calico-node", "granted by rule calico-typha, and it must be granted (calico-node)"},
		"reason: NameNotAllowed":   {"reason: KeyNotAllowed", "refused (NameNotAllowed)"},
		"expect: waiting":          {"expect: granted", "waiting for the IP address"},
		"dnsNames: [typha-client]": {"dnsNames: [typha-server]", "and it must be refused"},
	} {
		out, _, code := runPolicyTest(t, strings.Replace(testCases, old, c.now, 1))
		if code != 2 || !strings.Contains(out, c.want) || !strings.Contains(out, "2 passed, 1 failed") {
			t.Errorf("%s: exit code %d: %s", c.now, code, out)
		}
	}
}

func TestPolicyTestFaults(t *testing.T) {
	for text, want := range map[string]string{
		"":                   "EOF",
		"cases: []":          "there is no case",
		"cases: [{name: x}]": "needs a name",
		"cases: [{nmae: x}]": "nmae",
		"cases: [{name: x, as: y, key: dsa, expect: refused}]": "is not known",
	} {
		if _, stderr, code := runPolicyTest(t, text); code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit code %d: %s", text, code, stderr)
		}
	}
}
