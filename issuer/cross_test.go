package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// A rootCA is a self-signed CA, whose template a test may change before it is signed.
type rootCA struct {
	template *x509.Certificate
	key      crypto.Signer
}

func newRootCA(t *testing.T, name string, pathLength int) *rootCA {
	t.Helper()
	return &rootCA{key: pkcs10test.NewKey(t), template: &x509.Certificate{
		SerialNumber: big.NewInt(5), Subject: pkix.Name{CommonName: name},
		SubjectKeyId: []byte(name), NotBefore: time.Now().Add(-time.Hour).Truncate(time.Second),
		NotAfter: time.Now().Add(100 * time.Hour).Truncate(time.Second), KeyUsage: caKeyUsage,
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: pathLength,
		MaxPathLenZero: pathLength == 0,
	}}
}

func (r *rootCA) cert(t *testing.T) *x509.Certificate {
	t.Helper()
	return create(t, r.template, nil, r.key.Public(), r.key)
}

func (r *rootCA) ca(t *testing.T) *CA {
	t.Helper()
	return must.Value(Chain{r.cert(t)}.load())(t)
}

// requireEachAlone requires that a leaf with the chain verifies by each root alone.
func requireEachAlone(t *testing.T, issuing *rootCA, chain Chain, roots ...*x509.Certificate) {
	t.Helper()
	public := pkcs10test.NewKey(t).Public()
	leaf := create(t, &x509.Certificate{SerialNumber: big.NewInt(9),
		DNSNames: []string{"a.example.com"}, NotBefore: chain[0].NotBefore,
		NotAfter: chain[0].NotAfter}, chain[0], public, issuing.key)
	sent := x509.NewCertPool()
	sent.AddCert(chain[0])
	for _, root := range roots {
		pool := x509.NewCertPool()
		pool.AddCert(root)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: sent,
			DNSName: "a.example.com"}); err != nil {
			t.Errorf("who trusts %s alone: %v", root.Subject, err)
		}
	}
}

// With a cross-certificate, clients of either root verify what the next CA issues. It has the next
// CA's name and key, and is not wider than either CA.
func TestCrossCertificate(t *testing.T) {
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	must.OK(t, err)
	keys := []crypto.Signer{must.Value(rsa.GenerateKey(rand.Reader, 2048))(t), edwards,
		must.Value(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)}
	for i, key := range keys {
		former, next := newRootCA(t, "former", 1), newRootCA(t, "next", 0)
		former.key, next.key = key, keys[(i+1)%len(keys)]
		former.template.NotAfter = next.template.NotAfter.Add(-time.Hour)
		next.template.NotBefore = time.Now().Add(-time.Minute).Truncate(time.Second)
		by, root := former.ca(t), next.cert(t)
		cross := must.Value(NewCross(by, root, time.Now()))(t)
		chain := must.Value(cross.Sign(key))(t)
		made := chain[0]
		if len(chain) != 2 || !chain[1].Equal(by.cert) ||
			string(made.RawSubject) != string(root.RawSubject) ||
			string(made.SubjectKeyId) != "next" || string(made.AuthorityKeyId) != "former" ||
			ConstraintsOf(made).PathLength != 0 || made.KeyUsage != caKeyUsage ||
			!made.NotBefore.Equal(root.NotBefore) || !made.NotAfter.Equal(by.cert.NotAfter) {
			t.Errorf("%+v", made)
		}
		if err := chain.Check(next.key.Public(), time.Now()); err != nil {
			t.Error(err)
		}
		requireEachAlone(t, next, chain, by.cert, root)
	}
}

// Where a cross-certificate is in use, the next CA's own certificate is an anchor for it, and may
// replace it. Another CA's is neither.
func TestSelfSignedCertificateOfACrossSignedCA(t *testing.T) {
	former, next, stranger := newRootCA(t, "former", 1), newRootCA(t, "next", 0),
		newRootCA(t, "next", 0)
	root := next.cert(t)
	cross := must.Value(NewCross(former.ca(t), root, time.Now()))(t)
	chain := must.Value(cross.Sign(former.key))(t)
	for _, certs := range []Chain{chain, chain[:1]} {
		ca := must.Value(ParseCA(certs.PEM()))(t)
		if err := anchorsOf(t, root).Trust(ca); err != nil || !ca.AnchoredIn(Chain{root}) {
			t.Errorf("the next CA's root: %v", err)
		}
		other := stranger.cert(t)
		if err := anchorsOf(t, other).Trust(ca); err == nil || ca.AnchoredIn(Chain{other}) {
			t.Errorf("a CA of the same name: %v", err)
		}
		must.OK(t, ca.replaceableBy(next.ca(t)))
	}
	next.template.PermittedDNSDomains = []string{"example.org"}
	ca := must.Value(ParseCA(chain.PEM()))(t)
	if narrower := next.cert(t); ca.AnchoredIn(Chain{narrower}) ||
		anchorsOf(t, narrower).Trust(ca) == nil {
		t.Error("an anchor is trusted that permits less than the CA issues")
	}
}

// Name constraints and extended key usages are those of both CAs.
func TestCrossCertificateIsNoWider(t *testing.T) {
	email := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 2}
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for name, c := range map[string]struct {
		former, next func(*x509.Certificate)
		names        string
		uses         int
	}{
		"of the former CA": {func(c *x509.Certificate) {
			c.PermittedDNSDomains = []string{"example.com"}
			c.ExtKeyUsage, c.UnknownExtKeyUsage = both, []asn1.ObjectIdentifier{email}
		}, func(*x509.Certificate) {}, "example.com", 3},
		"of the next CA": {func(*x509.Certificate) {}, func(c *x509.Certificate) {
			c.PermittedDNSDomains, c.ExtKeyUsage = []string{"a.example.com"}, both
		}, "a.example.com", 2},
		"of both": {func(c *x509.Certificate) {
			c.PermittedDNSDomains = []string{"example.com"}
			c.ExtKeyUsage = append(both, x509.ExtKeyUsageCodeSigning)
		}, func(c *x509.Certificate) {
			c.PermittedDNSDomains = []string{"a.example.com"}
			c.ExtKeyUsage, c.UnknownExtKeyUsage = append(both, x509.ExtKeyUsageTimeStamping),
				[]asn1.ObjectIdentifier{email}
		}, "a.example.com", 2},
	} {
		t.Run(name, func(t *testing.T) {
			former, next := newRootCA(t, "former", 1), newRootCA(t, "next", 0)
			c.former(former.template)
			c.next(next.template)
			root, by := next.cert(t), former.ca(t)
			chain := must.Value(must.Value(NewCross(by, root, time.Now()))(t).Sign(former.key))(t)
			made := chain[0]
			if !slices.Equal(made.PermittedDNSDomains, []string{c.names}) ||
				len(made.ExtKeyUsage)+len(made.UnknownExtKeyUsage) != c.uses {
				t.Errorf("%v, %v, %v", made.PermittedDNSDomains, made.ExtKeyUsage,
					made.UnknownExtKeyUsage)
			}
			requireEachAlone(t, next, chain, by.cert, root)
		})
	}
}

// What may not be cross-signed is refused, and says why, before any key signs.
func TestWhatIsNotCrossSigned(t *testing.T) {
	past := time.Now().Add(-time.Minute)
	for want, c := range map[string]func(former, next *rootCA){
		"CN=former allows a path length of 0, and 1 CA(s) would follow it: have clients trust the " +
			"roots of both": func(former, _ *rootCA) {
			former.template.MaxPathLen, former.template.MaxPathLenZero = 0, true
		},
		"CN=former expired": func(former, _ *rootCA) { former.template.NotAfter = past },
		"CN=next expired":   func(_, next *rootCA) { next.template.NotAfter = past },
		"CN=next is not valid before": func(_, next *rootCA) {
			next.template.NotBefore = time.Now().Add(time.Hour)
		},
		"has the same key":            func(former, next *rootCA) { next.key = former.key },
		"subjectKeyIdentifier of the": func(former, next *rootCA) { next.template = former.template },
		"may not sign certificates": func(_, next *rootCA) {
			next.template.KeyUsage = x509.KeyUsageDigitalSignature
		},
		"are wider than those of CN=former": func(former, next *rootCA) {
			former.template.ExcludedDNSDomains = []string{"example.com"}
			next.template.PermittedDNSDomains = []string{"a.example.com"}
		},
	} {
		former, next := newRootCA(t, "former", 1), newRootCA(t, "next", 0)
		c(former, next)
		requireNotCross(t, former.ca(t), next.cert(t), want)
	}
	below := newThreeTier(t)
	middle := must.Value(ParseCA(below.chain(t)[1:].PEM()))(t)
	requireNotCross(t, middle, below.chain(t)[0], "CN=ca is issued by CN=middle")
	below.root.MaxPathLen = 1
	requireNotCross(t, must.Value(ParseCA(below.chain(t)[1:].PEM()))(t),
		newRootCA(t, "next", 0).cert(t), "CN=root allows a path length of 1, and 2 CA(s) would")
	forged := newRootCA(t, "next", 0).cert(t)
	forged.Signature[len(forged.Signature)-1] ^= 1
	requireNotCross(t, newRootCA(t, "former", 1).ca(t), forged, "is not signed by its own key")
}

func requireNotCross(t *testing.T, by *CA, next *x509.Certificate, want string) {
	t.Helper()
	if _, err := NewCross(by, next, time.Now()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v; want %q", err, want)
	}
}

// Only the key of the CA signs a cross-certificate.
func TestCrossCertificateByAnotherKey(t *testing.T) {
	former, next := newRootCA(t, "former", 1), newRootCA(t, "next", 0)
	cross := must.Value(NewCross(former.ca(t), next.cert(t), time.Now()))(t)
	if _, err := cross.Sign(next.key); err == nil {
		t.Error("another key has signed it")
	}
}
