package explain

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/cli/clitest"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// withTextBefore is the request as GnuTLS writes it.
func withTextBefore(text []byte) []byte {
	return append([]byte("PKCS #10 Certificate Request Information:\n\tVersion: 1\n\nSelf "+
		"signature: verified\n"), text...)
}

func asDER(text []byte) []byte {
	block, _ := pem.Decode(text)
	return block.Bytes
}

// asObject is the request as it is in a cluster, where it says itself who asks.
func asObject(text []byte) []byte {
	return fmt.Appendf(nil, `apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: x}
spec:
  signerName: example.com/calico
  request: %s
  usages: [server auth, client auth, digital signature]
  username: system:serviceaccount:calico-system:calico-typha
  groups: [system:serviceaccounts, "system:serviceaccounts:calico-system"]
`, base64.StdEncoding.EncodeToString(text))
}

func TestExplainReadsEveryForm(t *testing.T) {
	for name, encode := range map[string]func([]byte) []byte{"PEM": fixture.AsPEM, "DER": asDER,
		"object": asObject, "text before": withTextBefore} {
		file := fixture.RequestFile(t, encode, "typha-server")
		out, stderr, code := command(t,
			append([]string{"policy", "explain", file}, fixture.TyphaFlags...)...)
		if code != 0 || !strings.Contains(out, "granted by rule calico-typha") {
			t.Errorf("%s: exit code %d: %s%s", name, code, out, stderr)
		}
	}
	// An object says who asks; only the pod is assumed.
	file := fixture.RequestFile(t, asObject, "typha-server")
	if out, _, code := command(t, "policy", "explain", file, "--pod", "p", "--pod-ip",
		"10.65.0.7"); code != 0 {
		t.Errorf("an object: exit code %d: %s", code, out)
	}
}

// Every request in a file is judged, in whatever form the file holds several, and has a line.
// A request for a pod certificate says itself who it is for, and in v1beta1 has another key.
func TestExplainReadsPodCertificateRequests(t *testing.T) {
	t.Setenv("TRUST_DOMAIN", "example.org")
	stub := asDER(pkcs10test.Request{}.PEM(t))
	for name, c := range map[string]struct {
		key, account, want string
		code               int
	}{
		"a stub": {"stubPKCS10Request: " + base64.StdEncoding.EncodeToString(stub), "web",
			"granted by rule pods: URI:spiffe://example.org/ns/shop/sa/web", 0},
		"a broken stub": {"stubPKCS10Request: AAAA", "web", "is not a PKCS#10 request",
			exit.Refused},
		"a key without its proof": {"pkixPublicKey: AAAA", "web", "is not a public key",
			exit.Refused},
		"no account": {"stubPKCS10Request: " + base64.StdEncoding.EncodeToString(stub), `""`,
			"no rule", exit.Refused},
	} {
		file := fixture.File(t, "request.yaml", fmt.Sprintf(`
apiVersion: v1
kind: List
items:
  - apiVersion: certificates.k8s.io/v1
    kind: PodCertificateRequest
    metadata: {name: req-1, namespace: shop}
    spec:
      signerName: example.com/calico
      podName: web-0
      podUID: "1"
      serviceAccountName: %s
      serviceAccountUID: "2"
      nodeName: node-1
      nodeUID: "3"
      maxExpirationSeconds: 86400
      %s
`, c.account, c.key))
		out, stderr, code := command(t, "policy", "explain", file, "--policy", "pods")
		if code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit code %d: %s%s", name, code, out, stderr)
		}
	}
}

func TestExplainJudgesEveryRequestOfAFile(t *testing.T) {
	granted, refused := readFile(t, fixture.RequestFile(t, asObject, "typha-server")), readFile(t,
		fixture.RequestFile(t, asObject, "typha-client"))
	one, other := asJSONObject(t, granted), asJSONObject(t, refused)
	list := func(kind, a, b string) string {
		return `{"apiVersion": "v1", "kind": "` + kind + `", "items": [` + a + "," + b + "]}"
	}
	anonymous := strings.NewReplacer(`"kind":"CertificateSigningRequest"`, `"x":""`)
	for name, text := range map[string]string{
		"documents":        granted + "---\n" + refused,
		"documents, ended": "# two\n---\n" + granted + "...\n---\n" + refused + "---\n",
		"List":             list("List", one, other),
		"List in YAML":     "kind: List\nitems:\n- " + one + "\n- " + other + "\n",
		"list of the API": list("CertificateSigningRequestList", anonymous.Replace(one),
			anonymous.Replace(other)),
		"List in a List":     list("List", list("List", one, other), one),
		"JSON values":        one + "\n" + other,
		"document, then all": granted + "---\n" + list("List", other, one),
	} {
		file := filepath.Join(t.TempDir(), "requests.yaml")
		must.OK(t, os.WriteFile(file, []byte(text), 0o600))
		arguments := []string{"policy", "explain", file, "--pod", "p", "--pod-ip", "10.65.0.7"}
		out, stderr, code := command(t, append(arguments, "--output", "json")...)
		var lines []explanation
		for line := range strings.Lines(out) {
			var x explanation
			must.OK(t, json.Unmarshal([]byte(line), &x))
			lines = append(lines, x)
		}
		if code != 2 || len(lines) < 2 || lines[0].Verdict != "granted" ||
			lines[1].Verdict != "refused" ||
			lines[0].File != file+"#1" || lines[1].File != file+"#2" {
			t.Errorf("%s: exit code %d: %s%s", name, code, out, stderr)
		}
		if out, _, _ = command(t, arguments...); !strings.Contains(out,
			"requests.yaml#2 (x): refused") {
			t.Errorf("%s: %s", name, out)
		}
	}
}

// A file with something that is no request is a fault; the requests in it are judged anyway.
func TestExplainNamesWhatIsNoRequest(t *testing.T) {
	granted := readFile(t, fixture.RequestFile(t, asObject, "typha-server"))
	for text, want := range map[string]string{
		granted +
			"---\nkind: Pod\n": "#2: is Pod, not a CertificateSigningRequest",
		granted + "---\nspec: {}\n":              "#2: is an object without a kind",
		granted + "---\nkind: [\n":               "#2: YAML document 2 cannot be read",
		granted + "---\nkind: List\nitems: []\n": "#2: the List has no items",
		granted +
			"---\nkind: CertificateSigningRequest\n": "#2: the CertificateSigningRequest has no " +
			"spec.request",
		granted + "---\nkind: List\nitems: 7\n": "#2: the List cannot be read",
		"kind: List\nitems: []\n":               "requests.yaml: the List has no items",
		"spec: {}\n":                            "requests.yaml: is an object without a kind",
		"kind: CertificateSigningRequest\nspec: {usages: [\n": "requests.yaml: YAML document 1 " +
			"cannot be read",
		granted +
			"---\nkind: CertificateSigningRequest\nspec: {usages: 7, request: eA==}\n": "#2: the CertificateSigningRequest cannot be read",
	} {
		file := filepath.Join(t.TempDir(), "requests.yaml")
		must.OK(t, os.WriteFile(file, []byte(text), 0o600))
		out, stderr, code := command(t, "policy", "explain", file, "--pod", "p", "--pod-ip",
			"10.65.0.7")
		if code != 1 || !strings.Contains(stderr, want) ||
			strings.HasPrefix(text, granted) != strings.Contains(out, "#1 (x): granted") {
			t.Errorf("want %q: exit code %d: %s%s", want, code, out, stderr)
		}
	}
}

// A file that is too large is refused, and not judged by its beginning.
func TestExplainRefusesAFileThatIsTooLarge(t *testing.T) {
	file := filepath.Join(t.TempDir(), "requests.yaml")
	must.OK(t, os.WriteFile(file, nil, 0o600))
	must.OK(t, os.Truncate(file, maxFile+1))
	if _, stderr, code := command(t, "policy", "explain", file); code != 1 ||
		!strings.Contains(stderr, "more than 32 MiB") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must.OK(t, err)
	return string(text)
}

// asJSONObject is an object in YAML as JSON.
func asJSONObject(t *testing.T, text string) string {
	t.Helper()
	objects, err := readObjects([]byte(text))
	must.OK(t, err)
	return string(objects[0])
}

func TestExplainSaysEveryReason(t *testing.T) {
	file := fixture.RequestFile(t, fixture.AsPEM, "typha-client", "*.x")
	out, _, code := command(t,
		append([]string{"policy", "explain", "--output", "json", file}, fixture.TyphaFlags...)...)
	if code != 2 {
		t.Errorf("exit code %d", code)
	}
	var line explanation
	if err := json.Unmarshal([]byte(out), &line); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	rules := map[string]bool{}
	for _, reason := range line.Reasons {
		rules[reason.Rule] = true
		if reason.Field == "" || reason.Message == "" {
			t.Errorf("a reason without a field or a message: %+v", reason)
		}
	}
	if line.File != file || line.Verdict != "refused" || !rules["closed-world"] ||
		!rules["calico-typha"] {
		t.Errorf("%+v", line)
	}
}

func TestExplainGoesOnAfterAFault(t *testing.T) {
	good, missing := fixture.RequestFile(t, fixture.AsPEM,
		"typha-server"), filepath.Join(t.TempDir(), "missing")
	out, stderr, code := command(t,
		slices.Concat([]string{"policy", "explain", missing, good}, fixture.TyphaFlags)...)
	if code != 1 || !strings.Contains(out, "granted") || !strings.Contains(stderr, "missing") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
}

func TestExplainChecksItsFlags(t *testing.T) {
	_, stderr, code := command(t, "policy", "explain", "--pod-ip", "x", "--output", "xml",
		"--policy", "/nowhere")
	if code != 4 {
		t.Errorf("exit code %d", code)
	}
	for _, words := range []string{"FILE: is missing", "--pod-ip:", "--output:", "POLICY_FILE:"} {
		if !strings.Contains(stderr, words) {
			t.Errorf("%q is missing in %s", words, stderr)
		}
	}
}

// Whatever an object of the cluster holds, the explanation commands no terminal, in either form.
func TestExplainIsHarmless(t *testing.T) {
	const hostile = "a\x1b[2Jb\u009b31mc\u202ed\ne\x7f\U000e0001"
	verdicts := []policy.Verdict{
		&policy.Refusal{Reasons: []policy.Reason{{Code: policy.NameNotAllowed, Rule: "r",
			Field: hostile, Message: hostile, Allowed: []string{hostile}}}},
		&policy.Waiting{Rule: hostile, Missing: hostile},
	}
	for _, output := range []string{"text", "json"} {
		for _, verdict := range verdicts {
			var out bytes.Buffer
			e := &explainer{out: &out, assumed: assumed{output: output}}
			e.print(hostile, verdict)
			for _, r := range out.String() {
				if r != '\n' && !strconv.IsGraphic(r) {
					t.Errorf("%s: %U is in %q", output, r, out.String())
				}
			}
			if strings.Contains(out.String(), "d\ne") {
				t.Errorf("%s: a line is broken: %q", output, out.String())
			}
			var line explanation
			if err := json.Unmarshal(out.Bytes(), &line); output == "json" &&
				(err != nil || line.File != hostile) {
				t.Errorf("%v: %q", err, line.File)
			}
		}
	}
}

// An empty flag, as of an unset variable in a unit file, is one that was not given.
func TestEmptyFlagIsTheDefault(t *testing.T) {
	file := fixture.RequestFile(t, fixture.AsPEM, "typha-server")
	out, stderr, code := command(t,
		append([]string{"policy", "explain", file, "--certificate-lifetime=", "--cluster-domain="},
			fixture.TyphaFlags...)...)
	if code != 0 || !strings.Contains(out, "for 8760h") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
}

func TestExplainRefusesBlockedKeys(t *testing.T) {
	request := fixture.RequestFile(t, fixture.AsPEM, "typha-server")
	args := append([]string{"policy", "explain", request, "--blocked-keys-file",
		fixture.BlockedKeys(t, request)}, fixture.TyphaFlags...)
	if out, stderr, code := command(t, args...); code != exit.Refused ||
		!strings.Contains(out, "rule blocked-keys: request.publicKey is blocked") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	other := fixture.RequestFile(t, fixture.AsPEM, "typha-server")
	args[2] = other
	if out, stderr, code := command(t, args...); code != 0 {
		t.Errorf("another key: exit code %d: %s%s", code, out, stderr)
	}
}

func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return clitest.Run(t, NewCommand(), args...)
}
