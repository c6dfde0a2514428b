package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// A crossSigned is a rotation whose next CA has a cross-certificate by the former one.
type crossSigned struct {
	*rotating
	root testenv.CA // the next CA with its self-signed certificate
}

// newCrossSigned holds the ceremony. A CA with a path length of 0 is refused in it; for that case,
// TestRotation has clients trust both roots.
func newCrossSigned(t *testing.T, name string) crossSigned {
	t.Helper()
	r := crossSigned{rotating: newRotating(t, name)}
	dir := t.TempDir()
	cross, transcript := filepath.Join(dir, "cross.crt"), filepath.Join(dir, "cross.txt")
	r.root, r.next.CertFile = r.next, cross
	r.former = testenv.CA{KeyLabel: label(t), CertFile: filepath.Join(dir, "former.crt")}
	createCA(t, r.former, "--key-type", "ecdsa-p384", "--subject", "CN=Former CA",
		"--path-length", "1", "--out", r.former.CertFile)
	args := []string{"ca", "cross-sign", "--cert", r.root.CertFile, "--out", cross, "--transcript",
		transcript}
	command(t, ca, nil, args...).complains(t, 2, "nothing was signed",
		"allows a path length of 0", "have clients trust the roots of both CAs")
	command(t, testenv.CA{KeyLabel: ca.KeyLabel, CertFile: r.former.CertFile}, nil, args...).
		complains(t, 4, "is not the key of the CA certificate")
	for _, file := range []string{cross, transcript} {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s was written although nothing was signed", file)
		}
	}
	command(t, r.former, nil, args...).prints(t, 0, "Cross-certificate created", cross,
		"with 2 certificate(s)", "CA:TRUE, path length 0", "CN=Former CA")
	command(t, r.former, nil, args...).complains(t, 4, cross+" already exists")
	out, err := exec.CommandContext(t.Context(), "sh", "-c", "openssl x509 -in "+cross+
		" -outform DER | sha256sum").Output()
	must.OK(t, err)
	requireFingerprints(t, transcript, string(out))
	return r
}

// newPair has a new pod get its certificate, and returns its key with what it sends: the
// certificate and those that follow it.
func (r crossSigned) newPair(t *testing.T) tls.Certificate {
	t.Helper()
	p := newPod(t, node)
	asking := r.initContainer(p)
	csr, err := asking.Run(t.Context(), p.Client)
	must.OK(t, err)
	pair := tls.Certificate{PrivateKey: asking.Key,
		Leaf: parseCertificate(t, csr.Status.Certificate)}
	block, rest := pem.Decode(csr.Status.Certificate)
	for ; block != nil; block, rest = pem.Decode(rest) {
		pair.Certificate = append(pair.Certificate, block.Bytes)
	}
	return pair
}

// requireTrustedBy requires that clients that trust the root alone verify what the peer sends: with
// crypto/x509, with openssl, and in a handshake as Calico's clients do.
func requireTrustedBy(t *testing.T, root testenv.CA, pair tls.Certificate) {
	t.Helper()
	if err := handshake(t, &tls.Config{Certificates: []tls.Certificate{pair}}, &tls.Config{
		InsecureSkipVerify: true, VerifyConnection: verifyBy(poolOf(t, root))}); err != nil {
		t.Errorf("a handshake with %s alone: %v", root.CertFile, err)
	}
	leaf, sent, above := pair.Leaf, x509.NewCertPool(), []byte(nil)
	for _, der := range pair.Certificate[1:] {
		above = append(above, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	sent.AppendCertsFromPEM(above)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: poolOf(t, root), Intermediates: sent,
		DNSName: "typha-client"}); err != nil {
		t.Errorf("%s alone: %v", root.CertFile, err)
	}
	args := []string{"verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", root.CertFile}
	if len(above) > 0 {
		args = append(args, "-untrusted", tempFile(t, "above.crt", string(above)))
	}
	args = append(args, tempFile(t, "tls.crt",
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}))))
	if out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput(); err != nil {
		t.Errorf("openssl verify with %s alone: %v: %s", root.CertFile, err, out)
	}
}

// A rotation with a cross-certificate: what the next CA issues is trusted by clients of either root
// alone. After it, the next CA's own certificate takes the place of the cross-certificate.
func TestRotationWithACrossCertificate(t *testing.T) {
	r := newCrossSigned(t, "cross-signed")
	t.Parallel()
	r.allowBundle(t)
	r.env = append(r.env, "TRUST_BUNDLE_FILE="+r.former.CertFile,
		"NEXT_TRUST_BUNDLE_FILE="+r.root.CertFile, "STATE_DIR="+filepath.Join(t.TempDir(), "state"))
	d := startReady(t, r.former, r.both()...)
	waitLeads(t, d)
	r.step(t, "announced", "announce")
	r.requireBundle(t, pemOf(t, r.former, r.root))
	r.step(t, "trusted", "trust")
	r.stepLater(t, "signing", "sign")
	command(t, r.former, r.both(), "check").prints(t, 0, "next CA: CA certificate")

	pair := r.newPair(t)
	if n := len(pair.Certificate); n != 2 || !bytes.Equal(pair.Certificate[1],
		certificateOf(t, r.next).Raw) {
		t.Errorf("%d certificates are sent, or another one than the cross-certificate", n)
	}
	requireTrustedBy(t, r.former, pair)
	requireTrustedBy(t, r.root, pair)

	r.step(t, "retired", "retire", "--force", "--reason", "only this test has one")
	r.requireBundle(t, pemOf(t, r.root))
	write(t, r.next.CertFile, pemOf(t, r.root))
	waitLog(t, d, "the CA's certificate was replaced")
	if pair = r.newPair(t); len(pair.Certificate) != 1 {
		t.Errorf("the leaf is followed by %d certificates", len(pair.Certificate)-1)
	}
	requireTrustedBy(t, r.root, pair)
	command(t, r.former, r.both(), "audit", "verify").prints(t, 0)
}

// The certificate of the next CA must be its own, and self-signed.
func TestCrossSignRefusesOtherCertificates(t *testing.T) {
	r := newOfflineRoot(t, "CA:TRUE")
	made := testenv.CA{KeyLabel: label(t), CertFile: filepath.Join(t.TempDir(), "ca.crt")}
	createCA(t, made, "--path-length", "1", "--out", made.CertFile)
	out := filepath.Join(t.TempDir(), "cross.crt")
	request := filepath.Join(t.TempDir(), "next.csr")
	createCA(t, testenv.CA{KeyLabel: label(t)}, "--csr", "--out", request)
	for words, cert := range map[string]string{
		"is issued by CN=root: only that of a self-signed CA": r.sign(t, request, goodCA),
		"has the same key": made.CertFile,
	} {
		text := command(t, made, nil, "ca", "cross-sign", "--cert", cert, "--out", out).
			complains(t, 2, words)
		if _, err := os.Stat(out); err == nil || strings.Count(text, words) != 1 {
			t.Errorf("%v: %s", err, text)
		}
	}
}
