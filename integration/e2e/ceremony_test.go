package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// The manual of the ceremony is right: its commands work as written, and the CA that an offline
// root certifies in it issues certificates.
func TestCeremonyManual(t *testing.T) {
	manual := must.Get(os.ReadFile("../../docs/ceremony.md"))(t)
	var script bytes.Buffer
	for _, block := range regexp.MustCompile("(?s)\n```sh\n(.*?)```").FindAllSubmatch(manual, -1) {
		script.Write(block[1])
	}
	dir := t.TempDir()
	pin := filepath.Join(dir, "pin")
	must.OK(t, os.WriteFile(pin, []byte(shared.Token.PIN), 0o400))
	out, err := shared.Shell(t.Context(), testenv.CA{KeyLabel: label(t)},
		[]string{"PKCS11_PIN=", "PKCS11_PIN_FILE=" + pin}, dir, script.String())
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	for _, want := range []string{"CA created", "Request created", "CA imported", "signed.crt: OK",
		"spec:\n  certificateManagement:"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
	for _, name := range []string{"ceremony.txt", "request.txt"} {
		requireFingerprints(t, filepath.Join(dir, name), string(out))
	}
	issuing := testenv.CA{KeyLabel: "calico-issuing-ca",
		CertFile: filepath.Join(dir, "issuing-ca.crt")}
	requireWorks(t, issuing, 2)
}

// label returns a label that no key of another test has.
func label(t *testing.T) string { return fmt.Sprintf("%s-%d", t.Name(), numbers.Add(1)) }

// requireFingerprints requires the fingerprints of the transcript in the output of sha256sum.
func requireFingerprints(t *testing.T, transcript, printed string) {
	t.Helper()
	text := must.Get(os.ReadFile(transcript))(t)
	sums := regexp.MustCompile(`  SHA-256 +([0-9a-f]{64})\n`).FindSubmatch(text)
	if sums == nil || !strings.Contains(printed, string(sums[1])+"  -") {
		t.Errorf("the fingerprint of the transcript is not the file's:\n%s", text)
	}
	if strings.Contains(string(text)+printed, shared.Token.PIN) {
		t.Error("the PIN is shown")
	}
}

// requireWorks requires that check passes with the CA, and that run issues a chain of this length,
// which openssl verifies.
func requireWorks(t *testing.T, ca testenv.CA, length int) {
	t.Helper()
	command(t, ca, nil, "check").prints(t, 0)
	startReady(t, ca)
	p := newPod(t, node)
	csr := must.Get(p.InitContainer(node).Run(t.Context(), p.Client))(t)
	if got := bytes.Count(csr.Status.Certificate, []byte("-----BEGIN")); got != length {
		t.Errorf("the chain has %d certificates, want %d", got, length)
	}
	requireOpenSSL(t, ca, parseCertificate(t, csr.Status.Certificate))
}

func TestCeremonyWithEd25519(t *testing.T) {
	made := testenv.CA{KeyLabel: label(t), CertFile: filepath.Join(t.TempDir(), "ca.crt")}
	createCA(t, made, "--key-type", "ed25519", "--out", made.CertFile)
	out, err := exec.CommandContext(t.Context(), "openssl", "x509", "-in", made.CertFile, "-noout",
		"-text").Output()
	must.OK(t, err)
	if strings.Count(string(out), "ED25519") < 2 {
		t.Errorf("not an Ed25519 CA:\n%s", out)
	}
	requireWorks(t, made, 1)
}

// createCA runs "ca create", which must succeed.
func createCA(t *testing.T, ca testenv.CA, args ...string) {
	t.Helper()
	command(t, ca, nil, append([]string{"ca", "create"}, args...)...).prints(t, 0)
}

// An existing key can be certified any number of times, and is never created again.
func TestCeremonyWithAnExistingKey(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	made := testenv.CA{KeyLabel: label(t), CertFile: file("first.crt")}
	createCA(t, made, "--key-type", "rsa-2048", "--out", made.CertFile)
	command(t, made, nil, "ca", "create", "--out", file("no.crt")).complains(t, 4,
		"holds a key labelled")
	command(t, made, nil, "ca", "create", "--use-existing-key", "--key-type", "ecdsa-p256", "--out",
		file("no.crt")).complains(t, 4, "has the type rsa-2048, not ecdsa-p256")
	command(t, testenv.CA{KeyLabel: "nobody"}, nil, "ca", "create", "--use-existing-key", "--out",
		file("no.crt")).complains(t, 4, "the token has no private key")
	// and no word on the type
	must.OK(t, os.WriteFile(file("ca.yaml"), []byte("subject: CN=request\n"), 0o600))
	createCA(t, made, "--use-existing-key", "--profile", file("ca.yaml"), "--csr", "--out",
		file("ca.csr"))
	createCA(t, made, "--use-existing-key", "--subject", "CN=second", "--out", file("second.crt"),
		"--transcript", file("second.txt"))
	requireKeyOf(t, file("ca.csr"), "req", file("first.crt"))
	requireKeyOf(t, file("second.crt"), "x509", file("first.crt"))
	transcript := must.Get(os.ReadFile(file("second.txt")))(t)
	if text := string(transcript); !strings.Contains(text, "another tool created it") ||
		!strings.Contains(text, "CKA_NEVER_EXTRACTABLE  1\n") {
		t.Errorf("transcript:\n%s", text)
	}
	if _, err := os.Stat(file("no.crt")); err == nil {
		t.Error("what was refused was written")
	}
}

// requireKeyOf requires that the key in one file, as openssl reads it, is the key of the
// certificate in the other.
func requireKeyOf(t *testing.T, file, kind, cert string) {
	t.Helper()
	one := must.Get(exec.CommandContext(t.Context(), "openssl", kind, "-in", file, "-noout",
		"-pubkey").Output())(t)
	other := must.Get(exec.CommandContext(t.Context(), "openssl", "x509", "-in", cert, "-noout",
		"-pubkey").Output())(t)
	if len(one) == 0 || !bytes.Equal(one, other) {
		t.Errorf("%s is for the key\n%s%s is for\n%s", file, one, cert, other)
	}
}

func TestCeremonyRefusesAKeyThatCouldLeave(t *testing.T) {
	imported := importKey(t, label(t))
	out := filepath.Join(t.TempDir(), "ca.crt")
	command(t, imported, nil, "ca", "create", "--use-existing-key", "--out", out).complains(t, 4,
		"could leave the token")
	if _, err := os.Stat(out); err == nil {
		t.Error("it was certified")
	}
	command(t, imported, nil, "ca", "show").prints(t, 0, "CKA_NEVER_EXTRACTABLE  0 (should be 1)")
}

func TestCeremonyTriesAWrongPINOnce(t *testing.T) {
	const wrong = "0000-canary"
	defer logIn(t)
	out := filepath.Join(t.TempDir(), "new")
	for _, args := range [][]string{
		{"ca", "create", "--out", out},
		{"ca", "create", "--use-existing-key", "--out", out},
		{"ca", "import", "--cert", ca.CertFile, "--out", out},
		{"ca", "show"},
	} {
		p := command(t, ca, []string{"PKCS11_PIN=" + wrong}, args...)
		p.lacks(t, wrong)
		if text := p.complains(t, 3); strings.Count(text, "the PIN is wrong") != 1 {
			t.Errorf("%v: %s", args, text)
		}
	}
}

// An offlineRoot is openssl with the key of a root in files.
type offlineRoot struct{ dir string }

func newOfflineRoot(t *testing.T, constraints string) offlineRoot {
	t.Helper()
	r := offlineRoot{t.TempDir()}
	r.openssl(t, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", "root.key", "-out", "root.crt",
		"-subj", "/CN=root", "-days", "30", "-addext", "basicConstraints=critical,"+constraints,
		"-addext", "keyUsage=critical,keyCertSign")
	return r
}

func (r offlineRoot) openssl(t *testing.T, args ...string) {
	t.Helper()
	must.Get(testenv.Output(t.Context(), r.dir, nil, "openssl", args...))(t)
}

// sign certifies the request with the extensions, and returns the file with the certificate and the
// root's.
func (r offlineRoot) sign(t *testing.T, request, extensions string, args ...string) string {
	t.Helper()
	must.OK(t, os.WriteFile(filepath.Join(r.dir, "ext"), []byte(extensions), 0o600))
	r.openssl(t,
		append([]string{"x509", "-req", "-in", request, "-CA", "root.crt", "-CAkey", "root.key",
			"-set_serial", "7", "-extfile", "ext", "-out", "signed.crt"}, args...)...)
	signed := must.Get(os.ReadFile(filepath.Join(r.dir, "signed.crt")))(t)
	root := must.Get(os.ReadFile(filepath.Join(r.dir, "root.crt")))(t)
	chain := filepath.Join(t.TempDir(), "chain.crt")
	must.OK(t, os.WriteFile(chain, slices.Concat(signed, root), 0o600))
	return chain
}

const (
	identifiers = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
	goodCA      = identifiers +
		"basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n"
)

// Every mistake of a root is refused, and nothing is written.
func TestCeremonyRefusesWrongCertificates(t *testing.T) {
	dir := t.TempDir()
	request, out := filepath.Join(dir, "ca.csr"), filepath.Join(dir, "ca.crt")
	asking := testenv.CA{KeyLabel: label(t), CertFile: out}
	createCA(t, asking, "--csr", "--out", request)
	root, narrow := newOfflineRoot(t, "CA:TRUE"), newOfflineRoot(t, "CA:TRUE,pathlen:0")
	for _, c := range []struct {
		words, chain string
	}{
		{"is not a CA's", root.sign(t, request, identifiers)},
		{"keyCertSign",
			root.sign(t, request,
				identifiers+"basicConstraints=critical,CA:TRUE\nkeyUsage=digitalSignature\n")},
		{"no subjectKeyIdentifier",
			root.sign(t, request,
				"subjectKeyIdentifier=none\nbasicConstraints=critical,CA:TRUE\n"+
					"keyUsage=keyCertSign\n")},
		{"expired", root.sign(t, request, goodCA, "-days", "-1")},
		{"SHA1", root.sign(t, request, goodCA, "-sha1")},
		{"allows a path length of 0", narrow.sign(t, request, goodCA)},
	} {
		command(t, asking, nil, "ca", "import", "--cert", c.chain).complains(t, 2, c.words)
	}
	good := root.sign(t, request, goodCA)
	command(t, asking, nil, "ca", "import", "--cert", filepath.Join(root.dir, "signed.crt")).
		complains(t, 2, "the chain is not complete")
	command(t, ca, nil, "ca", "import", "--cert", good, "--out", out).complains(t, 2,
		"no certificate in the file is for the key")
	if _, err := os.Stat(out); err == nil {
		t.Fatal("what was refused was written")
	}
	command(t, asking, nil, "ca", "import", "--cert", good).prints(t, 0)
	command(t, asking, nil, "ca", "import", "--cert", good).complains(t, 4, "already exists")
}

// ca show has an output for programs.
func TestCeremonyShowsTheCA(t *testing.T) {
	var shown struct {
		Certificates []struct{ Subject, SHA256 string }
		Key          struct {
			Type       string
			Attributes []struct {
				Name          string
				Value, Should *bool
			}
			Token struct{ Label string }
		}
		PEM string
	}
	text := command(t, ca, nil, "ca", "show", "--output", "json").prints(t, 0)
	must.OK(t, json.Unmarshal([]byte(text), &shown))
	file := must.Get(os.ReadFile(ca.CertFile))(t)
	if len(shown.Certificates) != 1 || shown.PEM != string(file) ||
		shown.Key.Type != "ecdsa-p256" || shown.Key.Token.Label != shared.Token.Label {
		t.Errorf("%+v", shown)
	}
	for _, a := range shown.Key.Attributes {
		if a.Value == nil || *a.Value != *a.Should {
			t.Errorf("%s is %v", a.Name, a.Value)
		}
	}
	var asked struct {
		Spec struct {
			CertificateManagement struct {
				SignerName, KeyAlgorithm, SignatureAlgorithm string
				CACert                                       []byte
			}
		}
	}
	block := command(t, ca, nil, "ca", "show", "--output", "yaml").prints(t, 0)
	must.OK(t, yaml.UnmarshalStrict([]byte(block), &asked))
	if m := asked.Spec.CertificateManagement; string(m.CACert) != shown.PEM ||
		m.SignerName != testenv.SignerName || m.KeyAlgorithm != "ECDSAWithCurve256" ||
		m.SignatureAlgorithm != "ECDSAWithSHA256" {
		t.Errorf("for Calico:\n%s", block)
	}
	other := testenv.CA{KeyLabel: label(t), CertFile: ca.CertFile}
	createCA(t, other, "--out", filepath.Join(t.TempDir(), "ca.crt"))
	p := command(t, other, nil, "ca", "show")
	p.prints(t, 4, "-----BEGIN CERTIFICATE-----")
	p.complains(t, 4, "is not the key of the CA certificate")
}
