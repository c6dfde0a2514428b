package pkcs10

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
)

// A KeyType names the kind and the size of a public key, as rules spell it.
type KeyType string

// The keys that can be certified. They are the ones that Calico offers, RSA-3072 and Ed25519.
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

// keyTypes is the table of key types: RSA keys have a size, ECDSA keys a curve.
var keyTypes = []struct {
	name  KeyType
	bits  int
	curve elliptic.Curve
}{
	{name: RSA2048, bits: 2048},
	{name: RSA3072, bits: 3072},
	{name: RSA4096, bits: 4096},
	{name: RSA8192, bits: 8192},
	{name: ECDSAP256, curve: elliptic.P256()},
	{name: ECDSAP384, curve: elliptic.P384()},
	{name: ECDSAP521, curve: elliptic.P521()},
	{name: Ed25519},
}

// KeyTypes lists every KeyType.
func KeyTypes() []KeyType {
	all := make([]KeyType, 0, len(keyTypes))
	for _, k := range keyTypes {
		all = append(all, k.name)
	}
	return all
}

// TypeOfKey returns the type of a public key. It returns false if the key has none of the types.
func TypeOfKey(public crypto.PublicKey) (KeyType, bool) {
	for _, k := range keyTypes {
		is := false
		switch key := public.(type) {
		case *rsa.PublicKey:
			is = key.N.BitLen() == k.bits
		case *ecdsa.PublicKey:
			is = k.curve != nil && key.Curve == k.curve
		case ed25519.PublicKey:
			is = k.name == Ed25519
		}
		if is {
			return k.name, true
		}
	}
	return "", false
}

// RSABits returns the size of RSA keys of this type; 0 if it is another kind of key.
func (k KeyType) RSABits() int {
	for _, one := range keyTypes {
		if one.name == k {
			return one.bits
		}
	}
	return 0
}

// IsRSA reports whether keys of this type are RSA keys.
func (k KeyType) IsRSA() bool { return k.RSABits() > 0 }

// curve returns the curve of ECDSA keys of this type, or nil.
func (k KeyType) curve() elliptic.Curve {
	for _, one := range keyTypes {
		if one.name == k {
			return one.curve
		}
	}
	return nil
}

// IsECDSA reports whether keys of this type are keys on a NIST curve.
func (k KeyType) IsECDSA() bool { return k.curve() != nil }

// Generate makes a key pair of this type, for samples and tests.
func (k KeyType) Generate() (crypto.Signer, error) {
	switch {
	case k.IsRSA():
		return rsa.GenerateKey(rand.Reader, k.RSABits())
	case k.IsECDSA():
		return ecdsa.GenerateKey(k.curve(), rand.Reader)
	case k == Ed25519:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	}
	return nil, fmt.Errorf("%q is not known; choose from %v", string(k), KeyTypes())
}

// judgeKey refuses a key that is not of an allowed kind and size, that is written in an unusual
// way, or that is weak. The size comes first: it bounds the cost of all that follows.
//
// The key is given with its SubjectPublicKeyInfo in DER.
func judgeKey(public crypto.PublicKey, der []byte, found *faults) (KeyType, bool) {
	const field = "request.publicKey"
	kind, ok := TypeOfKey(public)
	if !ok {
		described := describeKey(public)
		found.add(field, "is %s; allowed are RSA of exactly 2048, 3072, 4096 or 8192 "+
			"bits, ECDSA on P-256, P-384 or P-521, and Ed25519", described)
		(*found)[len(*found)-1].UnknownKey = described
		return "", false
	}
	// Only the one canonical encoding: no hybrid point, no missing NULL, no unused bits.
	canonical, err := x509.MarshalPKIXPublicKey(public)
	if err != nil || !bytes.Equal(canonical, der) {
		return "", found.add(field, "is not in its canonical encoding (RFC 3279, section 2.3; "+
			"RFC 5480, section 2)")
	}
	switch key := public.(type) {
	case *rsa.PublicKey:
		return kind, judgeRSA(key, found)
	case ed25519.PublicKey:
		if hasSmallOrder(key) {
			return kind, found.add(field, "is an Ed25519 key of small order, for which everybody "+
				"can sign; make a new key")
		}
	}
	return kind, true
}

// judgeRSA refuses an unusual exponent and a modulus that gives the private key away.
func judgeRSA(key *rsa.PublicKey, found *faults) bool {
	const field = "request.publicKey"
	if key.E != 65537 {
		return found.add(field, "is an RSA key with the public exponent %d; it must be 65537",
			key.E)
	}
	if why := weakness(key); why != "" {
		return found.add(field, "is an RSA key whose private half can be found: %s; make a new "+
			"key, elsewhere if need be", why)
	}
	return true
}

func describeKey(public crypto.PublicKey) string {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return "an RSA key of " + big.NewInt(int64(key.N.BitLen())).String() + " bits"
	case *ecdsa.PublicKey:
		return "an ECDSA key on the curve " + Quote(key.Curve.Params().Name)
	}
	return "a key of an unknown kind"
}
