package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"math/big"
	"slices"
	"testing"

	"github.com/miekg/pkcs11"

	"hsm-signer/internal/must"
)

// der encodes what a test says is right.
func der(t *testing.T, value any) []byte {
	t.Helper()
	return must.Value(asn1.Marshal(value))(t)
}

// A point is read in an OCTET STRING, in a BIT STRING and alone, as tokens return it.
func TestPublicKeysOfTokens(t *testing.T) {
	for _, known := range curveIDs {
		key, err := ecdsa.GenerateKey(known.curve, rand.Reader)
		must.OK(t, err)
		point, err := key.PublicKey.Bytes()
		must.OK(t, err)
		for _, form := range [][]byte{point, der(t, point),
			der(t, asn1.BitString{Bytes: point, BitLength: 8 * len(point)})} {
			public, err := parseECDSA(der(t, known.id), form)
			if err != nil || !key.PublicKey.Equal(public) {
				t.Errorf("%s: %v", known.curve.Params().Name, err)
			}
		}
	}
	point := bytes.Repeat([]byte{4}, ed25519.PublicKeySize)
	for _, params := range [][]byte{edwards25519, der(t, asn1.ObjectIdentifier{1, 3, 101, 112})} {
		for _, form := range [][]byte{point, der(t, point),
			der(t, asn1.BitString{Bytes: point, BitLength: 8 * len(point)})} {
			if public, err := parseEd25519(params, form); err != nil ||
				!ed25519.PublicKey(point).Equal(public) {
				t.Errorf("Ed25519 with %x and %x: %v", params, form, err)
			}
		}
	}
	if public, err := parseRSA([]byte{0, 0x80, 1}, []byte{0, 1, 0, 1}); err != nil ||
		!(&rsa.PublicKey{N: big.NewInt(0x8001), E: 65537}).Equal(public) {
		t.Errorf("RSA: %v", err)
	}
}

func TestPublicKeysThatAreNone(t *testing.T) {
	p256 := der(t, curveIDs[0].id)
	for name, parse := range map[string]func() (crypto.PublicKey, error){
		"a point not on the curve": func() (crypto.PublicKey,
			error) {
			return parseECDSA(p256, append([]byte{4}, make([]byte, 64)...))
		},
		"a short point": func() (crypto.PublicKey,
			error) {
			return parseECDSA(p256, []byte{4})
		},
		"no point": func() (crypto.PublicKey,
			error) {
			return parseECDSA(p256, nil)
		},
		"no curve": func() (crypto.PublicKey,
			error) {
			return parseECDSA(nil, nil)
		},
		"secp256k1": func() (crypto.PublicKey, error) {
			return parseECDSA(der(t, asn1.ObjectIdentifier{1, 3, 132, 0, 10}), nil)
		},
		"X25519": func() (crypto.PublicKey,
			error) {
			return parseEd25519([]byte("\x13\x0acurve25519"), make([]byte, 32))
		},
		"an odd BIT STRING": func() (crypto.PublicKey, error) {
			return parseEd25519(edwards25519,
				der(t, asn1.BitString{Bytes: make([]byte, 32), BitLength: 255}))
		},
		"a long Ed25519 key": func() (crypto.PublicKey,
			error) {
			return parseEd25519(edwards25519, make([]byte, 33))
		},
		"no modulus": func() (crypto.PublicKey, error) { return parseRSA(nil, []byte{3}) },
		"exponent 1": func() (crypto.PublicKey,
			error) {
			return parseRSA([]byte{1}, []byte{1})
		},
		"a huge exponent": func() (crypto.PublicKey,
			error) {
			return parseRSA([]byte{1}, bytes.Repeat([]byte{9}, 9))
		},
	} {
		if key, err := parse(); err == nil {
			t.Errorf("%s is taken for %v", name, key)
		}
	}
}

func TestTypesOfKeys(t *testing.T) {
	for _, kind := range keyKinds {
		var public crypto.PublicKey = ed25519.PublicKey(make([]byte, 32))
		switch {
		case kind.curve != nil:
			public = &ecdsa.PublicKey{Curve: kind.curve}
		case kind.bits > 0:
			public = &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), uint(kind.bits)-1), E: 3}
		}
		if name, err := typeOf(public); err != nil || name != kind.name {
			t.Errorf("%s: %s %v", kind.name, name, err)
		}
	}
	for _, public := range []crypto.PublicKey{
		&rsa.PublicKey{N: big.NewInt(5),
			E: 3}, &ecdsa.PublicKey{Curve: elliptic.P224()}, "no key", nil,
	} {
		if name, err := typeOf(public); err == nil {
			t.Errorf("%T is taken for %s", public, name)
		}
	}
}

// What a key is asked to be: it may sign and nothing else, and it never leaves.
func TestTemplatesSayEverything(t *testing.T) {
	made, err := newTemplates(KeyID{Label: "l", ID: []byte{1}})
	must.OK(t, err)
	yes, no := []byte{1}, []byte{0}
	for kind, want := range map[uint][]byte{
		pkcs11.CKA_TOKEN: yes, pkcs11.CKA_PRIVATE: yes, pkcs11.CKA_SENSITIVE: yes,
		pkcs11.CKA_EXTRACTABLE: no, pkcs11.CKA_SIGN: yes, pkcs11.CKA_DECRYPT: no,
		pkcs11.CKA_UNWRAP: no, pkcs11.CKA_DERIVE: no, pkcs11.CKA_LABEL: []byte("l"),
		pkcs11.CKA_ID: {1},
	} {
		if a := made.private[kind]; a == nil || !slices.Equal(a.Value, want) {
			t.Errorf("attribute %x of the private key is %v, want %x", kind, a, want)
		}
	}
}
