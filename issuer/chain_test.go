package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"hsm-signer/policy/pkcs10/pkcs10test"
)

// A threeTier is a root, an intermediate and the CA, each of which a test may spoil.
type threeTier struct {
	root, middle, ca          *x509.Certificate // templates
	rootKey, middleKey, caKey *ecdsa.PrivateKey
}

func newThreeTier(t *testing.T) *threeTier {
	t.Helper()
	template := func(name string, pathLength int) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
			SubjectKeyId: []byte(name),
			NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage:              x509.KeyUsageCertSign,
			BasicConstraintsValid: true, IsCA: true, MaxPathLen: pathLength,
			MaxPathLenZero: pathLength == 0,
		}
	}
	return &threeTier{
		template("root", 2), template("middle", 1), template("ca", 0),
		pkcs10test.NewKey(t), pkcs10test.NewKey(t), pkcs10test.NewKey(t),
	}
}

// chain certifies the three, the CA first.
func (h *threeTier) chain(t *testing.T) Chain {
	t.Helper()
	root := create(t, h.root, nil, h.rootKey.Public(), h.rootKey)
	middle := create(t, h.middle, root, h.middleKey.Public(), h.rootKey)
	return Chain{create(t, h.ca, middle, h.caKey.Public(), h.middleKey), middle, root}
}

func TestGoodChain(t *testing.T) {
	h := newThreeTier(t)
	chain := h.chain(t)
	if err := chain.Check(h.caKey.Public(), time.Now()); err != nil {
		t.Error(err)
	}
	again, err := ReadChain(append([]byte("what openssl prints above\n"), chain.PEM()...))
	if err != nil || !slices.EqualFunc(again, chain, (*x509.Certificate).Equal) {
		t.Errorf("%d certificates, %v", len(again), err)
	}
	if err := (Chain{chain[2]}).Check(h.rootKey.Public(), time.Now()); err != nil {
		t.Errorf("a root alone: %v", err)
	}
}

func TestChainsThatWillNotDo(t *testing.T) {
	expired := func(cert *x509.Certificate) { cert.NotAfter = time.Now().Add(-time.Minute) }
	for want, spoil := range map[string]func(*threeTier){
		"no certificate in the file is for the key": func(h *threeTier) { h.caKey = nil },
		"(CN=ca) is not a CA's":                     func(h *threeTier) { h.ca.IsCA, h.ca.MaxPathLenZero = false, false },
		"certificate 2 (CN=middle) is not a CA's": func(h *threeTier) {
			h.middle.IsCA, h.middle.MaxPathLen = false, 0
		},
		"(CN=ca) may not sign certificates": func(h *threeTier) {
			h.ca.KeyUsage = x509.KeyUsageCRLSign
		},
		"certificate 2 (CN=middle) may not sign": func(h *threeTier) {
			h.middle.KeyUsage = x509.KeyUsageDigitalSignature
		},
		"CN=ca expired at":     func(h *threeTier) { expired(h.ca) },
		"CN=middle expired at": func(h *threeTier) { expired(h.middle) },
		"CN=root expired at":   func(h *threeTier) { expired(h.root) },
		"CN=ca is not valid before": func(h *threeTier) {
			h.ca.NotBefore = time.Now().Add(time.Minute)
		},
		"certificate 3 (CN=root) allows a path length": func(h *threeTier) { h.root.MaxPathLen = 1 },
		"certificate 2 (CN=middle) allows a path length": func(h *threeTier) {
			h.middle.MaxPathLen, h.middle.MaxPathLenZero = 0, true
		},
		"extendedKeyUsage of CN=middle": func(h *threeTier) {
			h.middle.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		},
		"extensions that TLS clients will not understand: 1.2.3": func(h *threeTier) {
			h.middle.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Critical: true,
				Value: []byte{5, 0}}}
		},
	} {
		h := newThreeTier(t)
		key := h.caKey.Public()
		spoil(h)
		if h.caKey == nil {
			h.caKey = pkcs10test.NewKey(t)
		}
		requireFault(t, h.chain(t), key, want)
	}
}

func requireFault(t *testing.T, chain Chain, key crypto.PublicKey, want string) {
	t.Helper()
	if err := chain.Check(key, time.Now()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v; want %q", err, want)
	}
}

func TestChainsInDisorder(t *testing.T) {
	h := newThreeTier(t)
	chain := h.chain(t)
	ca, middle, root := chain[0], chain[1], chain[2]
	stranger := newThreeTier(t).chain(t)
	for want, disorder := range map[string]Chain{
		"certificate 2 (CN=ca) is the one for the key": {middle, ca, root},
		"put each before the one that certifies it":    {ca, root, middle},
		"the chain is not complete: CN=middle":         {ca, middle},
		"the chain is not complete: CN=ca":             {ca},
		"is not by the key of CN=root":                 {ca, middle, stranger[2]},
		"is not by the key of CN=middle":               {ca, stranger[1], stranger[2]},
	} {
		requireFault(t, disorder, h.caKey.Public(), want)
	}
}

// All that is wrong is said at once.
func TestFaultsOfAChainComeTogether(t *testing.T) {
	h := newThreeTier(t)
	h.ca.KeyUsage, h.middle.NotAfter = 0, time.Now().Add(-time.Minute)
	chain := h.chain(t)
	for _, want := range []string{"CN=ca) may not sign", "CN=middle expired"} {
		requireFault(t, chain, h.caKey.Public(), want)
	}
}
