package release

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hsm-signer/hsm"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// attested returns a directory with checksums, and signatures of the key.
func attested(t *testing.T, key Key) (dir string) {
	t.Helper()
	dir = t.TempDir()
	b := &build{Options: Options{Out: dir, Key: key, Progress: t.Output()}, commit: "0123abc",
		time: commitTime, tools: map[string]string{"go": "go1.26"}}
	must.OK(t, os.WriteFile(b.out("file"), []byte("content"), 0o600))
	must.OK(t, b.checksums(t.Context()))
	must.OK(t, b.attest(t.Context()))
	return dir
}

// openSSL runs openssl in a directory and returns whether it succeeded.
func openSSL(t *testing.T, dir string, args ...string) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("openssl %v: %v: %s", args, err, out)
	}
	return err == nil
}

// verify verifies a release's signatures as docs/release.md says.
func verify(t *testing.T, dir string) {
	t.Helper()
	good := func(text, signature string) bool {
		return openSSL(t, dir, "dgst", "-sha256", "-verify", publicKeyFile, "-signature", signature,
			text)
	}
	if !good(checksumFile, signatureFile) {
		t.Error("openssl does not verify the checksums")
	}
	if good(publicKeyFile, signatureFile) {
		t.Error("openssl verifies another file")
	}
	text := must.Get(os.ReadFile(filepath.Join(dir, provenanceFile)))(t)
	var e envelope
	must.OK(t, json.Unmarshal(text, &e))
	must.OK(t, os.WriteFile(filepath.Join(dir, "text"), signedText(e.Payload), 0o600))
	must.OK(t, os.WriteFile(filepath.Join(dir, "signature"), e.Signatures[0].Sig, 0o600))
	if !good("text", "signature") {
		t.Error("openssl does not verify the provenance")
	}
	var s statement
	must.OK(t, json.Unmarshal(e.Payload, &s))
	sums := must.Get(os.ReadFile(filepath.Join(dir, checksumFile)))(t)
	for _, one := range s.Subject {
		if line := one.Digest["sha256"] + "  " + one.Name + "\n"; !bytes.Contains(sums,
			[]byte(line)) {
			t.Errorf("the provenance has %q, and the checksums are\n%s", line, sums)
		}
	}
	if len(s.Subject) != bytes.Count(sums, []byte("\n")) {
		t.Errorf("the provenance has %d files, and the checksums are\n%s", len(s.Subject), sums)
	}
}

// openssl verifies what a key in a file signs, whatever the form of the file.
func TestSignaturesOfFiles(t *testing.T) {
	dir := t.TempDir()
	for name, args := range map[string][]string{
		"ec.pem":  {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"},
		"sec1":    {"ecparam", "-name", "prime256v1", "-genkey"},
		"rsa.pem": {"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"},
		"pkcs1":   {"genrsa", "-traditional", "2048"},
	} {
		if !openSSL(t, dir, slices.Insert(args, 1, "-out", name)...) {
			t.Fatal("no key")
		}
		verify(t, attested(t, Key{Name: filepath.Join(dir, name)}))
	}
	if !openSSL(t, dir, "genpkey", "-algorithm", "ed25519", "-out", "ed") {
		t.Fatal("no key")
	}
	for _, k := range []Key{{Name: filepath.Join(dir, "ed")}, {Name: dir + "/none"},
		{Name: "pkcs11:token=a;object=b"},
		{Name: "pkcs11:object=b?module-path=/m&pin-source=/p"}} {
		if _, _, err := k.open(t.Context()); err == nil {
			t.Errorf("%+v is a key", k)
		}
	}
}

// openssl verifies what a key in a token signs.
func TestSignaturesOfATokensKey(t *testing.T) {
	dir := t.TempDir()
	token := must.Get(testenv.NewSoftHSM(t.Context(), dir, "releases"))(t)
	t.Setenv(testenv.SoftHSMVariable, token.Conf)
	ceremony := must.Get(hsm.OpenCeremony(t.Context(), hsm.Config{Module: token.Module,
		Token: hsm.TokenID{Label: token.Label}, PIN: hsm.PIN(token.PIN).Fixed(),
		Key: hsm.KeyID{Label: "release"}}))(t)
	pair := must.Get(ceremony.Generate(t.Context(), "ecdsa-p256"))(t)
	ceremony.Close()
	spki := must.Get(x509.MarshalPKIXPublicKey(pair.Public))(t)
	public, pin := filepath.Join(dir, "public.pem"), filepath.Join(dir, "pin")
	must.OK(t, os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY",
		Bytes: spki}), 0o600))
	must.OK(t, os.WriteFile(pin, []byte(token.PIN+"\n"), 0o600))
	key := Key{Public: public, Name: "pkcs11:token=releases;object=release?module-path=" +
		token.Module + "&pin-source=" + pin}
	verify(t, attested(t, key))
	key.Public = ""
	if _, _, err := key.open(t.Context()); err == nil {
		t.Error("a key needs no public half")
	}
}

// Without a key the provenance has no signature, and nothing else is written.
func TestNoSignatures(t *testing.T) {
	dir := attested(t, Key{})
	text := must.Get(os.ReadFile(filepath.Join(dir, provenanceFile)))(t)
	if !strings.Contains(string(text), `"signatures":[]`) {
		t.Errorf("the provenance is %s", text)
	}
	if _, err := os.Stat(filepath.Join(dir, signatureFile)); err == nil {
		t.Error("the checksums are signed")
	}
}
