package e2e

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// patience limits the wait for a certificate.
const patience = 30 * time.Second

// byName maps Calico's names of signature algorithms to those of crypto/x509.
var byName = map[string]x509.SignatureAlgorithm{
	"SHA256WithRSA": x509.SHA256WithRSA, "SHA384WithRSA": x509.SHA384WithRSA,
	"SHA512WithRSA":    x509.SHA512WithRSA,
	"SHA256WithRSAPSS": x509.SHA256WithRSAPSS, "SHA384WithRSAPSS": x509.SHA384WithRSAPSS,
	"SHA512WithRSAPSS": x509.SHA512WithRSAPSS,
	"ECDSAWithSHA256":  x509.ECDSAWithSHA256, "ECDSAWithSHA384": x509.ECDSAWithSHA384,
	"ECDSAWithSHA512": x509.ECDSAWithSHA512,
}

// What each kind of CA key can sign with.
var (
	withRSA = []string{"SHA256WithRSA", "SHA384WithRSA", "SHA512WithRSA", "SHA256WithRSAPSS",
		"SHA384WithRSAPSS", "SHA512WithRSAPSS"}
	withECDSA = []string{"ECDSAWithSHA256", "ECDSAWithSHA384", "ECDSAWithSHA512"}
)

// authorities are the CA keys; the slowest to create are last. usual is the default signature
// algorithm of each.
var authorities = []struct {
	keyType, usual string
	algorithms     []string
}{
	{"ecdsa-p256", "ECDSAWithSHA256", withECDSA},
	{"ecdsa-p384", "ECDSAWithSHA384", withECDSA},
	{"ecdsa-p521", "ECDSAWithSHA512", withECDSA},
	{"rsa-2048", "SHA256WithRSA", withRSA},
	{"rsa-3072", "SHA256WithRSA", withRSA},
	{"rsa-4096", "SHA256WithRSA", withRSA},
	{"rsa-8192", "SHA256WithRSA", withRSA},
}

// Every key that Calico makes gets its certificate, with every signature algorithm of its request.
// Every CA key signs with every algorithm that it supports, for an RSA key and for an ECDSA key.
func TestAlgorithms(t *testing.T) {
	ceremonies := startCeremonies(t)
	var passed table
	t.Cleanup(func() { t.Logf("issued, and verified by crypto/x509 and by openssl:\n%s", &passed) })
	t.Run("requesters", func(t *testing.T) {
		startReady(t, ca)
		for _, key := range calico.KeyAlgorithms {
			t.Run(key, func(t *testing.T) { passed.testRequester(t, key) })
		}
	})
	t.Run("authorities", func(t *testing.T) {
		for _, authority := range authorities {
			t.Run(authority.keyType, func(t *testing.T) {
				made := ceremonies[authority.keyType].wait(t)
				passed.testAuthority(t, authority.keyType, made, "", authority.usual)
				for _, signature := range authority.algorithms {
					passed.testAuthority(t, authority.keyType, made, signature, signature)
				}
			})
		}
	})
}

// testRequester certifies the key with the shared CA, with each signature algorithm of the request.
func (passed *table) testRequester(t *testing.T, key string) {
	for _, signature := range calico.SignatureAlgorithms {
		if strings.HasPrefix(key, "RSA") != strings.HasSuffix(signature, "RSA") {
			continue
		}
		ok := t.Run(signature, func(t *testing.T) {
			certify(t, ca, "ECDSAWithSHA256", key, signature)
		})
		passed.add(ok, "requester's key "+key, signature)
	}
}

// testAuthority runs hsm-signer with this SIGNATURE_ALGORITHM, or without one if it is "", and
// certifies an RSA key and an ECDSA key.
func (passed *table) testAuthority(t *testing.T, keyType string, made testenv.CA, signature,
	expected string) {
	name, env := signature, []string{"SIGNATURE_ALGORITHM=" + signature}
	if signature == "" {
		name, env = "default", nil
	}
	ok := t.Run(name, func(t *testing.T) {
		d := startReady(t, made, env...)
		t.Run("RSAWithSize2048",
			func(t *testing.T) { certify(t, made, expected, "RSAWithSize2048", "SHA256WithRSA") })
		t.Run("ECDSAWithCurve256", func(t *testing.T) {
			certify(t, made, expected, "ECDSAWithCurve256", "ECDSAWithSHA256")
		})
		if t.Failed() {
			t.Logf("the log of hsm-signer:\n%s", d.Log())
		}
	})
	cell := expected
	if signature == "" {
		cell += " (default)"
	}
	passed.add(ok, "CA's key "+keyType, cell)
}

func TestAlgorithmThatTheKeyCannotUse(t *testing.T) {
	command(t, ca, []string{"SIGNATURE_ALGORITHM=SHA256WithRSA"}, "run").complains(t, 4,
		"SIGNATURE_ALGORITHM: ", "cannot sign with SHA256WithRSA")
}

// certify has a running hsm-signer certify a key, as for Calico's node, and checks the certificate.
// expected is the signature algorithm of the certificate.
func certify(t *testing.T, ca testenv.CA, expected, key, requestSignature string) {
	t.Helper()
	p, asking := newRequester(t, node)
	asking.Key, asking.SignatureAlgorithm = cachedKey(t, key), requestSignature
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	csr, err := asking.Run(ctx, p.Client)
	must.OK(t, err)
	cert := requireIssued(t, csr, asking)
	if got := cert.SignatureAlgorithm; got != byName[expected] {
		t.Errorf("the certificate is signed with %s, not %s", got, expected)
	}
	if got := nameOf(cert.PublicKey); got != key {
		t.Errorf("the certified key is of %s, not %s", got, key)
	}
	requireUsagesOf(t, cert)
	requireVerified(t, ca, cert)
	requireOpenSSL(t, ca, cert)
}

// A table lists the successful cases in order.
type table struct {
	keys  []string
	cells map[string][]string // by key
}

// add adds a successful case.
func (passed *table) add(ok bool, key, cell string) {
	if !ok {
		return
	}
	if passed.cells == nil {
		passed.cells = map[string][]string{}
	}
	if !slices.Contains(passed.keys, key) {
		passed.keys = append(passed.keys, key)
	}
	passed.cells[key] = append(passed.cells[key], cell)
}

// String returns a line for each key.
func (passed *table) String() string {
	var b strings.Builder
	for _, key := range passed.keys {
		fmt.Fprintf(&b, "%-33s %s\n", key, strings.Join(passed.cells[key], ", "))
	}
	return b.String()
}

// requireUsagesOf requires the usages that Calico requests, without the one that a key of this type
// cannot serve.
func requireUsagesOf(t *testing.T, cert *x509.Certificate) {
	t.Helper()
	want := x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement
	if cert.PublicKeyAlgorithm == x509.RSA {
		want = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	}
	if cert.KeyUsage != want {
		t.Errorf("keyUsage is %b, want %b", cert.KeyUsage, want)
	}
	if !slices.Equal(cert.ExtKeyUsage,
		[]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) {
		t.Errorf("extKeyUsage is %v", cert.ExtKeyUsage)
	}
}

// requireVerified verifies the chain with crypto/x509, for both ends of a connection.
func requireVerified(t *testing.T, ca testenv.CA, cert *x509.Certificate) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(certificateOf(t, ca))
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth,
		x509.ExtKeyUsageClientAuth} {
		options := x509.VerifyOptions{Roots: roots, DNSName: cert.DNSNames[0],
			KeyUsages: []x509.ExtKeyUsage{usage}}
		if _, err := cert.Verify(options); err != nil {
			t.Errorf("crypto/x509: %v", err)
		}
	}
}

// A ceremony creates a CA in the background.
type ceremony struct {
	ca   testenv.CA
	err  error
	done chan struct{}
}

// startCeremonies creates a CA of each type, one after the other. They end with the test.
func startCeremonies(t *testing.T) map[string]*ceremony {
	t.Helper()
	all := map[string]*ceremony{}
	for _, authority := range authorities {
		all[authority.keyType] = &ceremony{done: make(chan struct{})}
	}
	ctx, dir := t.Context(), t.TempDir()
	go func() {
		for _, authority := range authorities {
			all[authority.keyType].hold(ctx, authority.keyType, dir)
		}
	}()
	t.Cleanup(func() {
		for _, c := range all {
			<-c.done
		}
	})
	return all
}

// hold creates the CA. No other test, and no earlier run, has a key with this label.
func (c *ceremony) hold(ctx context.Context, keyType, dir string) {
	defer close(c.done)
	c.ca = testenv.CA{KeyLabel: filepath.Base(filepath.Dir(dir)) + "-" + keyType,
		CertFile: filepath.Join(dir, keyType+".crt")}
	_, stderr, code := shared.Command(ctx, c.ca, nil, "ca", "create", "--key-type", keyType,
		"--subject", "CN=Calico CA "+keyType, "--out", c.ca.CertFile)
	if code != 0 {
		c.err = fmt.Errorf("hsm-signer ca create --key-type %s: exit code %d: %s", keyType, code,
			stderr)
	}
}

// wait waits until the CA exists, and returns it.
func (c *ceremony) wait(t *testing.T) testenv.CA {
	t.Helper()
	<-c.done
	must.OK(t, c.err)
	return c.ca
}

// cachedKey returns a requester's key. Some keys take most of a minute to create, so the user's
// cache keeps them.
func cachedKey(t *testing.T, algorithm string) crypto.Signer {
	t.Helper()
	cache, err := os.UserCacheDir()
	must.OK(t, err)
	file := filepath.Join(cache, "hsm-signer", "testkeys", algorithm+".pem")
	if key, err := readKey(file); err == nil && nameOf(key.Public()) == algorithm {
		return key
	}
	key, err := calico.NewKey(algorithm)
	must.OK(t, err)
	must.OK(t, writeKey(file, key))
	return key
}

func readKey(file string) (crypto.Signer, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is not PEM", file)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s holds a key that does not sign: %T", file, parsed)
	}
	return key, nil
}

// writeKey writes a file that only its owner may read. A concurrent reader sees the whole file or
// none.
func writeKey(file string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	part, err := os.CreateTemp(filepath.Dir(file), "part-") // mode 0600
	if err != nil {
		return err
	}
	err = errors.Join(pem.Encode(part, &pem.Block{Type: "PRIVATE KEY", Bytes: der}), part.Close())
	if err == nil {
		err = os.Rename(part.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part.Name()))
	}
	return nil
}

// nameOf returns Calico's name for the algorithm of a key.
func nameOf(public crypto.PublicKey) string {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSAWithSize%d", key.N.BitLen())
	case *ecdsa.PublicKey:
		return fmt.Sprintf("ECDSAWithCurve%d", key.Curve.Params().BitSize)
	}
	return fmt.Sprintf("%T", public)
}
