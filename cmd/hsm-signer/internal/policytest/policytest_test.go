package policytest

import (
	"encoding/json"
	"encoding/xml"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/cli/clitest"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/explain"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
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
	must.OK(t, os.WriteFile(filepath.Join(dir, "cases.yaml"), []byte(text), 0o600))
	return command(t, "policy", "test", dir)
}

func TestPolicyTestPasses(t *testing.T) {
	if out, stderr, code := runPolicyTest(t, testCases); code != 0 ||
		!strings.Contains(out, "3 passed, 0 failed") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
}

func TestPolicyTestSaysWhatDiffers(t *testing.T) {
	for old, c := range map[string]struct{ now, want string }{
		"rule: calico-typha": {"rule: calico-node",
			"granted by rule calico-typha; expected: granted (calico-node)"},
		"reason: NameNotAllowed":   {"reason: KeyNotAllowed", "refused (NameNotAllowed)"},
		"expect: waiting":          {"expect: granted", "waiting for the IP address"},
		"dnsNames: [typha-client]": {"dnsNames: [typha-server]", "; expected: refused"},
	} {
		out, _, code := runPolicyTest(t, strings.Replace(testCases, old, c.now, 1))
		if code != 2 || !strings.Contains(out, c.want) ||
			!strings.Contains(out, "2 passed, 1 failed") {
			t.Errorf("%s: exit code %d: %s", c.now, code, out)
		}
	}
}

// What a condition reads can be said in a case, and by flags of explain.
func TestPolicyTestOfConditions(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		must.OK(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	file := write("policy", `version: 1
rules:
  - name: gateway
    from:
      serviceAccounts: [edge/gateway]
      extra: {authentication.kubernetes.io/node-name: [gateway-1, other-1]}
    grant: {dnsNames: [gateway], keys: [ecdsa-p256], usages: [digital signature]}
    conditions:
      - {that: 'pod.node.startsWith("gateway-")', message: it runs on a gateway}
      - {that: 'request.signerName == "example.com/edge"', message: it asks the edge's signer}
      - {that: '!pod.hostNetwork', message: it has an address of its own}
`)
	write("cases.yaml", `cases:
  - name: a
    as: "system:serviceaccount:edge:gateway"
    signer: example.com/edge
    pod: {name: g, node: gateway-1}
    dnsNames: [gateway]
    usages: [digital signature]
    expect: granted
  - name: b
    as: "system:serviceaccount:edge:gateway"
    signer: example.com/edge
    pod: {name: g, node: other-1}
    dnsNames: [gateway]
    usages: [digital signature]
    expect: refused
    reason: ConditionNotMet
  - name: c
    as: "system:serviceaccount:edge:gateway"
    signer: example.com/core
    pod: {name: g, node: gateway-1}
    dnsNames: [gateway]
    usages: [digital signature]
    expect: refused
    reason: ConditionNotMet
  - name: d
    as: "system:serviceaccount:edge:gateway"
    signer: example.com/edge
    pod: {name: g}
    dnsNames: [gateway]
    usages: [digital signature]
    expect: refused
    reason: RequesterNotAllowed
  - name: e
    as: "system:serviceaccount:edge:gateway"
    signer: example.com/edge
    pod: {name: g, node: gateway-1, hostNetwork: true}
    dnsNames: [gateway]
    usages: [digital signature]
    expect: refused
    reason: ConditionNotMet
`)
	if out, stderr, code := command(t, "policy", "test", dir, "--policy", file); code != 0 ||
		!strings.Contains(out, "5 passed") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	request := write("request", string(pkcs10test.Request{DNSNames: []string{"gateway"}}.PEM(t)))
	for flags, want := range map[string]int{"--pod-node=gateway-1": 0, "--pod-node=other-1": 2,
		"--pod-node=gateway-1 --pod-host-network": 2} {
		out, stderr, code := clitest.Run(t, explain.NewCommand(),
			append([]string{"policy", "explain", request, "--policy", file, "--as",
				"system:serviceaccount:edge:gateway",
				"--signer", "example.com/edge", "--pod", "g", "--usages", "digital signature"},
				strings.Fields(flags)...)...)
		if code != want {
			t.Errorf("%s: exit code %d: %s%s", flags, code, out, stderr)
		}
	}
}

// A case of a pod certificate says the pod; the rule gives the names, which a case can demand.
func TestPolicyTestOfPodCertificates(t *testing.T) {
	const text = `cases:
  - name: its SPIFFE ID
    podCertificate: true
    as: system:serviceaccount:shop:web
    pod: {name: web-0}
    names: ["URI:spiffe://example.org/ns/shop/sa/web"]
    expect: granted
    rule: pods
  - {name: no pod, podCertificate: true, as: "system:serviceaccount:shop:web", expect: waiting}
  - name: a stub with a name
    podCertificate: true
    as: system:serviceaccount:shop:web
    pod: {name: web-0}
    dnsNames: [kubernetes]
    expect: refused
    reason: InvalidRequest
  - name: an annotation
    podCertificate: true
    as: system:serviceaccount:shop:web
    pod: {name: web-0}
    annotations: {example.com/san: kubernetes}
    expect: refused
    reason: InvalidUnverifiedUserAnnotations
  - {name: a CSR, as: "system:serviceaccount:shop:web", pod: {name: web-0}, expect: refused}
`
	t.Setenv("POLICY_FILE", "pods")
	t.Setenv("TRUST_DOMAIN", "example.org")
	if out, stderr, code := runPolicyTest(t, text); code != 0 ||
		!strings.Contains(out, "5 passed") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	for now, want := range map[string]string{
		"shop/sa/other":  "granted with the names URI:spiffe://example.org/ns/shop/sa/web; expected",
		"shop/sa/web, x": "expected: URI:spiffe://example.org/ns/shop/sa/web, x",
	} {
		out, _, code := runPolicyTest(t, strings.Replace(text, "shop/sa/web\"", now+"\"", 1))
		if code != exit.Refused || !strings.Contains(out, want) {
			t.Errorf("%s: exit code %d: %s", now, code, out)
		}
	}
}

// The pod of a case says which Services select it.
func TestPolicyTestOfPodNames(t *testing.T) {
	policy := fixture.File(t, "policy.yaml", `version: 1
rules:
  - name: web
    from: {podCertificates: true, serviceAccounts: [shop/web]}
    grant: {podNames: [services, hostname], keys: [ecdsa-p256], usages: [digital signature]}
`)
	t.Setenv("POLICY_FILE", policy)
	out, stderr, code := runPolicyTest(t, `cases:
  - name: its Services
    podCertificate: true
    as: system:serviceaccount:shop:web
    pod: {name: web-0, services: [web, sets], hostname: web-0, subdomain: sets}
    names: [DNS:web.shop.svc, DNS:web.shop.svc.cluster.local, DNS:sets.shop.svc,
      DNS:sets.shop.svc.cluster.local, DNS:web-0.sets.shop.svc,
      DNS:web-0.sets.shop.svc.cluster.local]
    expect: granted
  - {name: none, podCertificate: true, as: "system:serviceaccount:shop:web", pod: {name: web-0}, expect: waiting}
`)
	if code != 0 || !strings.Contains(out, "2 passed") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
}

// Without a directory the cases of the current one are run, and nothing else there; where there are
// none, it is said what to do. A directory may hold the policy too.
func TestPolicyTestWithoutADirectory(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	_, stderr, code := command(t, "policy", "test")
	if code != 4 || !strings.Contains(stderr, "DIR: is missing") ||
		!strings.Contains(stderr, "hsm-signer policy test tests/") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	must.OK(t, os.WriteFile("compose.yml", []byte("services: {}\n"), 0o600))
	must.OK(t, os.WriteFile("mine.yaml", []byte("version: 1\nrules: []\n"), 0o600))
	must.OK(t, os.WriteFile("cases.yml", []byte(testCases), 0o600))
	if out, stderr, code := command(t, "policy", "test"); code != 0 ||
		!strings.Contains(out, "3 passed, 0 failed") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	_, stderr, code = command(t, "policy", "test", ".")
	if code != 1 || !strings.Contains(stderr, "compose.yml") ||
		strings.Contains(stderr, "mine.yaml") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if out, stderr, code := command(t, "policy", "test", "cases.yml"); code != 0 ||
		!strings.Contains(out, "ok    cases.yml: own name") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	if _, stderr, code = command(t, "policy", "test", "nowhere"); code != 1 ||
		!strings.Contains(stderr, "nowhere") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// mixedCases have one of each result, one name twice, and text that XML must escape.
var mixedCases = strings.Replace(testCases, "reason: NameNotAllowed", "reason: KeyNotAllowed", 1) +
	`  - name: "a <fault> & \"more\" \e"
    as: x
    key: dsa
    expect: refused
  - {name: own name, as: x, expect: refused}
`

func TestPolicyTestInJSON(t *testing.T) {
	t.Chdir(t.TempDir())
	must.OK(t, os.WriteFile("cases.yaml", []byte(mixedCases), 0o600))
	out, stderr, code := command(t, "policy", "test", "--output", "json")
	var got []string
	for line := range strings.Lines(out) {
		var r caseResult
		must.OK(t, json.Unmarshal([]byte(line), &r))
		if got = append(got, r.Result); r.File != "cases.yaml" || r.Case == "" ||
			(r.Result == casePassed) != (r.Message == "") {
			t.Errorf("%+v", r)
		}
	}
	if want := []string{"passed", "passed", "failed", "fault", "passed"}; code != 1 ||
		!slices.Equal(got, want) {
		t.Errorf("exit code %d; %v; want %v: %s", code, got, want, stderr)
	}
}

// The report has the elements and attributes of JUnit's schema as Jenkins has it, names are unique,
// as GitLab needs them, and the numbers agree.
func TestPolicyTestAsJUnit(t *testing.T) {
	t.Chdir(t.TempDir())
	must.OK(t, os.WriteFile("cases.yaml", []byte(mixedCases), 0o600))
	must.OK(t, os.WriteFile("broken.yaml", []byte("cases: [{nmae: x}]\n"), 0o600))
	out, _, code := command(t, "policy", "test", "--output", "junit")
	var report junitReport
	if err := xml.Unmarshal([]byte(out), &report); err != nil || code != 1 {
		t.Fatalf("exit code %d; %v: %s", code, err, out)
	}
	if !strings.HasPrefix(out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites ") {
		t.Errorf("it begins with %.80s", out)
	}
	if report.Tests != 6 || report.Failures != 1 || report.Errors != 2 || len(report.Suites) != 2 {
		t.Errorf("%+v", report)
	}
	var names []string
	time := regexp.MustCompile(`^[0-9]+\.[0-9]{3}$`)
	for _, suite := range report.Suites {
		failures, errs := 0, 0
		for _, c := range suite.Cases {
			names = append(names, c.ClassName+": "+c.Name)
			for problem, n := range map[*junitProblem]*int{c.Failure: &failures, c.Error: &errs} {
				if problem != nil {
					*n++
					if problem.Message == "" || problem.Text != problem.Message {
						t.Errorf("%s: %+v", c.Name, problem)
					}
				}
			}
			if !time.MatchString(c.Time) {
				t.Errorf("%s took %q", c.Name, c.Time)
			}
		}
		if suite.Tests != len(suite.Cases) || suite.Failures != failures || suite.Errors != errs ||
			!time.MatchString(suite.Time) {
			t.Errorf("%+v", suite)
		}
	}
	if want := []string{
		"broken: the file", "cases: own name", "cases: no address yet", "cases: another's name",
		"cases: a <fault> & \"more\" \ufffd", "cases: own name (2)",
	}; !slices.Equal(names, want) {
		t.Errorf("%q; want %q", names, want)
	}
	if _, stderr, code := command(t, "policy", "test", "--output", "xml"); code != 4 ||
		!strings.Contains(stderr, "--output: \"xml\" is not one of text, json and junit") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestClassNamesHaveNoDots(t *testing.T) {
	for file, want := range map[string]string{"cases.yaml": "cases",
		"../tests/calico-3.30.yml": "__/tests/calico-3_30"} {
		if got := className(file); got != want {
			t.Errorf("%s: %s", file, got)
		}
	}
}

func TestPolicyTestFaults(t *testing.T) {
	for text, want := range map[string]string{
		"":                   "it is empty",
		"cases: []":          "there is no case",
		"cases: [{name: x}]": "needs a name",
		"cases: [{nmae: x}]": "nmae",
		"cases: [{name: x, as: y, key: dsa, expect: refused}]":              "is not known",
		"cases: [{name: x, as: y, podCertificate: true, expect: refused}]":  "not a service account",
		"cases: [{name: x, as: y, annotations: {a/b: c}, expect: refused}]": "podCertificate: true",
		"cases: [{name: x, as: y, names: [a], expect: refused}]":            "are for granted",
	} {
		if _, stderr, code := runPolicyTest(t, text); code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit code %d: %s", text, code, stderr)
		}
	}
}

// Wherever a duration can be given, days and weeks can be.
func TestLifetimeOfACaseTakesDays(t *testing.T) {
	t.Setenv("POLICY_FILE", "")
	out, stderr, code := runPolicyTest(t,
		strings.Replace(testCases, "lifetime: 24h", "lifetime: 1d", 1))
	if code != 0 {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
}

// "policy test" judges under the CA of CA_CERT_FILE, and reports it if there is none.
func TestCasesIncludeTheCA(t *testing.T) {
	dir := filepath.Dir(fixture.File(t, "cases.yaml", `
cases:
  - name: typha
    as: system:serviceaccount:calico-system:calico-typha
    pod: {name: p, ipAddresses: [10.65.0.7]}
    dnsNames: [typha-server]
    ipAddresses: [10.65.0.7]
    expect: granted
`))
	fixture.RequireJudgedUnderCA(t, command, "policy", "test", dir)
}

func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return clitest.Run(t, NewCommand(), args...)
}
