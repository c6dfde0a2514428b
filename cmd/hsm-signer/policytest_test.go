package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsm-signer/policy/pkcs10/pkcs10test"
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

// What a condition looks at can be said in a case, and by flags of explain.
func TestPolicyTestOfConditions(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	file := write("policy", `version: 1
rules:
  - name: gateway
    from: {serviceAccounts: [edge/gateway], extra: {authentication.kubernetes.io/node-name: [gateway-1, other-1]}}
    grant: {dnsNames: [gateway], keys: [ecdsa-p256], usages: [digital signature]}
    conditions:
      - {that: 'pod.node.startsWith("gateway-")', message: it runs on a gateway}
      - {that: 'request.signerName == "example.com/edge"', message: it asks the edge's signer}
      - {that: '!pod.hostNetwork', message: it has an address of its own}
`)
	write("cases.yaml", `cases:
  - {name: a, as: "system:serviceaccount:edge:gateway", signer: example.com/edge, pod: {name: g, node: gateway-1}, dnsNames: [gateway], usages: [digital signature], expect: granted}
  - {name: b, as: "system:serviceaccount:edge:gateway", signer: example.com/edge, pod: {name: g, node: other-1}, dnsNames: [gateway], usages: [digital signature], expect: refused, reason: ConditionNotMet}
  - {name: c, as: "system:serviceaccount:edge:gateway", signer: example.com/core, pod: {name: g, node: gateway-1}, dnsNames: [gateway], usages: [digital signature], expect: refused, reason: ConditionNotMet}
  - {name: d, as: "system:serviceaccount:edge:gateway", signer: example.com/edge, pod: {name: g}, dnsNames: [gateway], usages: [digital signature], expect: refused, reason: RequesterNotAllowed}
  - {name: e, as: "system:serviceaccount:edge:gateway", signer: example.com/edge, pod: {name: g, node: gateway-1, hostNetwork: true}, dnsNames: [gateway], usages: [digital signature], expect: refused, reason: ConditionNotMet}
`)
	if out, stderr, code := command(t, "policy", "test", dir, "--policy", file); code != 0 || !strings.Contains(out, "5 passed") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	request := write("request", string(pkcs10test.Request{DNSNames: []string{"gateway"}}.PEM(t)))
	for flags, want := range map[string]int{"--pod-node=gateway-1": 0, "--pod-node=other-1": 2, "--pod-node=gateway-1 --pod-host-network": 2} {
		out, stderr, code := command(t, append([]string{"policy", "explain", request, "--policy", file, "--as", "system:serviceaccount:edge:gateway",
			"--signer", "example.com/edge", "--pod", "g", "--usages", "digital signature"}, strings.Fields(flags)...)...)
		if code != want {
			t.Errorf("%s: exit code %d: %s%s", flags, code, out, stderr)
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
