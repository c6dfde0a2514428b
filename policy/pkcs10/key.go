package pkcs10

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"strings"
)

// A KeyType names the kind and the size of a public key, as rules spell it.
type KeyType string

// The keys that can be certified. They are the ones that Calico offers, RSA-3072
// and Ed25519.
const (
	RSA2048   KeyType = "rsa-2048"
	RSA3072   KeyType = "rsa-3072"
	RSA4096   KeyType = "rsa-4096"
	RSA8192   KeyType = "rsa-8192"
	ECDSAP256 KeyType = "ecdsa-p256"
	ECDSAP384 KeyType = "ecdsa-p384"
	ECDSAP521 KeyType = "ecdsa-p521"
	Ed25519   KeyType = "ed25519"
)

// KeyTypes lists every KeyType.
func KeyTypes() []KeyType {
	return []KeyType{RSA2048, RSA3072, RSA4096, RSA8192, ECDSAP256, ECDSAP384, ECDSAP521, Ed25519}
}

// IsRSA tells whether keys of this type are RSA keys.
func (k KeyType) IsRSA() bool { return strings.HasPrefix(string(k), "rsa-") }

// IsECDSA tells whether keys of this type are keys on a NIST curve.
func (k KeyType) IsECDSA() bool { return strings.HasPrefix(string(k), "ecdsa-") }

// TypeOfKey names the type of a public key; it answers false for one that has no name
// here.
func TypeOfKey(public crypto.PublicKey) (KeyType, bool) {
	switch key := public.(type) {
	case *rsa.PublicKey:
		k, ok := map[int]KeyType{2048: RSA2048, 3072: RSA3072, 4096: RSA4096, 8192: RSA8192}[key.N.BitLen()]
		return k, ok
	case *ecdsa.PublicKey:
		k, ok := map[elliptic.Curve]KeyType{elliptic.P256(): ECDSAP256, elliptic.P384(): ECDSAP384, elliptic.P521(): ECDSAP521}[key.Curve]
		return k, ok
	case ed25519.PublicKey:
		return Ed25519, true
	}
	return "", false
}

// judgeKey refuses a key that is not of an allowed kind and size, that is written in an unusual
// way, or that is weak. The size comes first: it bounds the cost of all that follows.
func judgeKey(csr *x509.CertificateRequest, found *faults) (KeyType, bool) {
	const field = "request.publicKey"
	kind, ok := TypeOfKey(csr.PublicKey)
	if !ok {
		return "", found.add(field, "is %s; allowed are RSA of exactly 2048, 3072, 4096 or 8192 bits, ECDSA on P-256, P-384 or P-521, and Ed25519", describeKey(csr))
	}
	// Only the one canonical encoding: no hybrid point, no missing NULL, no unused bits.
	canonical, err := x509.MarshalPKIXPublicKey(csr.PublicKey)
	if err != nil || !bytes.Equal(canonical, csr.RawSubjectPublicKeyInfo) {
		return "", found.add(field, "is not in its canonical encoding (RFC 3279, section 2.3; RFC 5480, section 2)")
	}
	switch key := csr.PublicKey.(type) {
	case *rsa.PublicKey:
		return kind, judgeRSA(key, found)
	case ed25519.PublicKey:
		if hasSmallOrder(key) {
			return kind, found.add(field, "is an Ed25519 key of small order, for which everybody can sign; make a new key")
		}
	}
	return kind, true
}

// judgeRSA refuses an unusual exponent and a modulus that gives the private key away.
func judgeRSA(key *rsa.PublicKey, found *faults) bool {
	const field = "request.publicKey"
	if key.E != 65537 {
		return found.add(field, "is an RSA key with the public exponent %d; it must be 65537", key.E)
	}
	if why := weakness(key); why != "" {
		return found.add(field, "is an RSA key whose private half can be found: %s; make a new key, elsewhere if need be", why)
	}
	return true
}

func describeKey(csr *x509.CertificateRequest) string {
	switch key := csr.PublicKey.(type) {
	case *rsa.PublicKey:
		return "an RSA key of " + big.NewInt(int64(key.N.BitLen())).String() + " bits"
	case *ecdsa.PublicKey:
		return "an ECDSA key on the curve " + Quote(key.Curve.Params().Name)
	}
	return "of an unknown kind (" + Quote(csr.PublicKeyAlgorithm.String()) + ")"
}
