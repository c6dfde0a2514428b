package e2e

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/util/keyutil"

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
	t.Run("requesters", func(t *testing.T) {
		startReady(t, ca)
		for _, key := range calico.KeyAlgorithms {
			t.Run(key, func(t *testing.T) { testRequester(t, key) })
		}
	})
	t.Run("authorities", func(t *testing.T) {
		for _, authority := range authorities {
			made := <-ceremonies
			t.Run(authority.keyType, func(t *testing.T) {
				must.OK(t, made.err)
				testAuthority(t, made.ca, "", authority.usual)
				for _, signature := range authority.algorithms {
					testAuthority(t, made.ca, signature, signature)
				}
			})
		}
	})
}

// testRequester certifies the key with the shared CA, with each signature algorithm of the request.
func testRequester(t *testing.T, key string) {
	for _, signature := range calico.SignatureAlgorithms {
		if strings.HasPrefix(key, "RSA") == strings.HasSuffix(signature, "RSA") {
			t.Run(signature, func(t *testing.T) {
				certify(t, ca, "ECDSAWithSHA256", key, signature)
			})
		}
	}
}

// testAuthority runs hsm-signer with this SIGNATURE_ALGORITHM, or without one if it is "", and
// certifies an RSA key and an ECDSA key.
func testAuthority(t *testing.T, made testenv.CA, signature, expected string) {
	name, env := signature, []string{"SIGNATURE_ALGORITHM=" + signature}
	if signature == "" {
		name, env = "default", nil
	}
	t.Run(name, func(t *testing.T) {
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
	cert := requireIssued(t, must.Get(asking.Run(ctx, p.Client))(t), asking)
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

// A ceremony is a created CA, or why there is none.
type ceremony struct {
	ca  testenv.CA
	err error
}

// startCeremonies creates a CA of each type in the background, one after the other. They end with
// the test.
func startCeremonies(t *testing.T) <-chan ceremony {
	t.Helper()
	all := make(chan ceremony, len(authorities))
	ctx, dir := t.Context(), t.TempDir()
	var group sync.WaitGroup
	group.Go(func() {
		for _, authority := range authorities {
			all <- hold(ctx, authority.keyType, dir)
		}
	})
	t.Cleanup(group.Wait)
	return all
}

// hold creates a CA. No other test, and no earlier run, has a key with this label.
func hold(ctx context.Context, keyType, dir string) (c ceremony) {
	c.ca = testenv.CA{KeyLabel: filepath.Base(filepath.Dir(dir)) + "-" + keyType,
		CertFile: filepath.Join(dir, keyType+".crt")}
	_, stderr, code := shared.Command(ctx, c.ca, nil, "ca", "create", "--key-type", keyType,
		"--subject", "CN=Calico CA "+keyType, "--out", c.ca.CertFile)
	if code != 0 {
		c.err = fmt.Errorf("hsm-signer ca create --key-type %s: exit code %d: %s", keyType, code,
			stderr)
	}
	return c
}

// cachedKey returns a requester's key. Some keys take most of a minute to create, so the user's
// cache keeps them.
func cachedKey(t *testing.T, algorithm string) crypto.Signer {
	t.Helper()
	cache := must.Get(os.UserCacheDir())(t)
	file := filepath.Join(cache, "hsm-signer", "testkeys", algorithm+".pem")
	if found, err := keyutil.PrivateKeyFromFile(file); err == nil {
		if key, is := found.(crypto.Signer); is && nameOf(key.Public()) == algorithm {
			return key
		}
	}
	key := must.Get(calico.NewKey(algorithm))(t)
	must.OK(t, keyutil.WriteKey(file, must.Get(keyutil.MarshalPrivateKeyToPEM(key))(t)))
	return key
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
