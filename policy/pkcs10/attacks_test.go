package pkcs10

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hsm-signer/internal/must"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// tlv is an element in DER: its identifier octet and its contents.
func tlv(tag byte, contents ...[]byte) []byte {
	content := slices.Concat(contents...)
	switch n := len(content); {
	case n < 0x80:
		return slices.Concat([]byte{tag, byte(n)}, content)
	case n < 0x100:
		return slices.Concat([]byte{tag, 0x81, byte(n)}, content)
	default:
		return slices.Concat([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content)
	}
}

func unhex(text string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// Identifier octets (X.690, section 8.1.2).
const (
	integer, bitString, octetString, null, oid, utf8String = 0x02, 0x03, 0x04, 0x05, 0x06, 0x0c
	ia5String, bmpString, sequenceOf, setOf                = 0x16, 0x1e, 0x30, 0x31
	attributesTag                                          = 0xa0
)

var (
	oidBytesCN       = tlv(oid, []byte{0x55, 0x04, 0x03})
	oidBytesSAN      = tlv(oid, []byte{0x55, 0x1d, 0x11})
	oidBytesKeyUsage = tlv(oid, []byte{0x55, 0x1d, 0x0f})
	oidBytesEKU      = tlv(oid, []byte{0x55, 0x1d, 0x25})
	oidBytesRequest  = tlv(oid, unhex("2a864886f70d01090e"))
	ecdsaWithSHA256  = tlv(sequenceOf, tlv(oid, unhex("2a8648ce3d040302")))
)

// A byHand is a request in its parts, each in DER, that is put together and signed as it stands.
// What is wrong with it is then the one part that was changed.
type byHand struct {
	key                                *ecdsa.PrivateKey
	version, subject, spki, attributes []byte
	algorithm                          []byte
	// of the BIT STRING's whole element
	signature func(signature []byte) []byte
}

func newByHand(t *testing.T) *byHand {
	h := &byHand{key: pkcs10test.NewKey(t), version: tlv(integer, []byte{0}),
		algorithm: ecdsaWithSHA256}
	h.spki = must.Value(x509.MarshalPKIXPublicKey(h.key.Public()))(t)
	h.subject = subjectOf(tlv(utf8String, []byte("a")))
	h.extend(oidBytesSAN, tlv(sequenceOf, tlv(0x82, []byte("a"))))
	h.signature = func(s []byte) []byte { return tlv(bitString, []byte{0}, s) }
	return h
}

// subjectOf is a subject with the common name.
func subjectOf(value []byte) []byte {
	return tlv(sequenceOf, tlv(setOf, tlv(sequenceOf, oidBytesCN, value)))
}

// extend asks for one extension: its type and, in DER, its value.
func (h *byHand) extend(oid, value []byte) {
	h.attributes = requesting(tlv(sequenceOf, oid, tlv(octetString, value)))
}

// requesting are the attributes that ask for the extensions.
func requesting(extensions ...[]byte) []byte {
	return tlv(attributesTag,
		tlv(sequenceOf, oidBytesRequest, tlv(setOf, tlv(sequenceOf, extensions...))))
}

// names asks for the GeneralNames, each in DER.
func (h *byHand) names(names ...[]byte) { h.extend(oidBytesSAN, tlv(sequenceOf, names...)) }

func (h *byHand) der(t *testing.T) []byte {
	tbs := tlv(sequenceOf, h.version, h.subject, h.spki, h.attributes)
	digest := sha256.Sum256(tbs)
	signature := must.Value(ecdsa.SignASN1(rand.Reader, h.key, digest[:]))(t)
	return tlv(sequenceOf, tbs, h.algorithm, h.signature(signature))
}

// Each of these is signed as it stands, and has one defect in its encoding, by which one reader
// could be made to see something else than another.
func TestRequestsMadeByHandAreRefused(t *testing.T) {
	if _, faults := Parse(pkcs10test.Encode(newByHand(t).der(t))); len(faults) > 0 {
		t.Fatalf("the request without a defect: %v", faults)
	}
	san := tlv(sequenceOf, tlv(0x82, []byte("a")))
	for name, change := range map[string]func(h *byHand){
		"version in two bytes": func(h *byHand) { h.version = tlv(integer, []byte{0, 0}) },
		"version 2":            func(h *byHand) { h.version = tlv(integer, []byte{2}) },
		"negative version":     func(h *byHand) { h.version = tlv(integer, []byte{0xff}) },
		"version of 64 bytes": func(h *byHand) {
			h.version = tlv(integer, bytes.Repeat([]byte{1}, 64))
		},
		"version is an ENUMERATED": func(h *byHand) { h.version = tlv(0x0a, []byte{0}) },
		"no version":               func(h *byHand) { h.version = nil },

		"subject is a SET":                 func(h *byHand) { h.subject[0] = setOf },
		"empty RDN":                        func(h *byHand) { h.subject = tlv(sequenceOf, tlv(setOf)) },
		"RDN is a SEQUENCE":                func(h *byHand) { h.subject[2] = sequenceOf },
		"a second name within the RDN":     func(h *byHand) { h.subject = twice(oidBytesCN) },
		"a third element in the attribute": func(h *byHand) { h.subject = third() },
		"an attribute without a value": func(h *byHand) {
			h.subject = tlv(sequenceOf, tlv(setOf, tlv(sequenceOf, oidBytesCN)))
		},
		"common name is a constructed string": func(h *byHand) {
			h.subject = subjectOf(tlv(0x20|utf8String, tlv(utf8String, []byte("a"))))
		},
		"common name in two bytes a letter": func(h *byHand) {
			h.subject = subjectOf(tlv(bmpString, []byte{0, 'a'}))
		},
		"common name in four bytes a letter": func(h *byHand) {
			h.subject = subjectOf(tlv(0x1c, []byte{0, 0, 0, 'a'}))
		},
		"common name is a T61String with escapes": func(h *byHand) {
			h.subject = subjectOf(tlv(0x14, []byte("a\x1b(B")))
		},
		"common name is an OCTET STRING": func(h *byHand) {
			h.subject = subjectOf(tlv(octetString, []byte("a")))
		},
		"common name is no UTF-8": func(h *byHand) {
			h.subject = subjectOf(tlv(utf8String, []byte("a\xc0\x80")))
		},
		"IA5String beyond ASCII": func(h *byHand) {
			h.subject = subjectOf(tlv(ia5String, []byte("a\xe9")))
		},
		"common name with a zero-width joiner": func(h *byHand) {
			h.subject = subjectOf(tlv(utf8String, []byte("a\u200d")))
		},
		"common name with a letter that folds": func(h *byHand) {
			h.subject = subjectOf(tlv(utf8String, []byte("\u212aubernetes")))
		},
		"common name's type in a longer encoding": func(h *byHand) { h.subject = longer() },
		"33 attributes": func(h *byHand) {
			h.subject = tlv(sequenceOf, slices.Repeat(h.subject[2:], 33))
		},
		"the second common name in another string": func(h *byHand) {
			h.subject = tlv(sequenceOf, h.subject[2:], subjectOf(tlv(ia5String, []byte("b")))[2:])
		},

		"point that is not on the curve": func(h *byHand) { h.spki[len(h.spki)-1] ^= 1 },
		"point at infinity": func(h *byHand) {
			h.spki = tlv(sequenceOf, h.spki[2:23], tlv(bitString, []byte{0, 0}))
		},
		"compressed point": func(h *byHand) {
			h.spki = spkiOf(h, elliptic.MarshalCompressed(h.key.Curve, h.key.X, h.key.Y))
		},
		"hybrid point":         func(h *byHand) { h.spki = spkiOf(h, hybrid(h)) },
		"key with unused bits": func(h *byHand) { h.spki[25] = 1 },
		"key of another curve than it says": func(h *byHand) {
			h.spki = tlv(sequenceOf,
				tlv(sequenceOf, tlv(oid, unhex("2a8648ce3d0201")), tlv(oid, unhex("2b81040022"))),
				h.spki[23:])
		},
		"key without a curve": func(h *byHand) {
			h.spki = tlv(sequenceOf, tlv(sequenceOf, tlv(oid, unhex("2a8648ce3d0201"))),
				h.spki[23:])
		},
		"key whose curve is written out": func(h *byHand) {
			h.spki = tlv(sequenceOf,
				tlv(sequenceOf, tlv(oid, unhex("2a8648ce3d0201")),
					tlv(sequenceOf, tlv(integer, []byte{1}))), h.spki[23:])
		},
		"key for agreement alone (id-ecDH)": func(h *byHand) {
			h.spki = tlv(sequenceOf,
				tlv(sequenceOf, tlv(oid, unhex("2b8104010c")), tlv(oid, unhex("2a8648ce3d030107"))),
				h.spki[23:])
		},
		"something behind the key": func(h *byHand) {
			h.spki = tlv(sequenceOf, h.spki[2:], tlv(null))
		},
		"X25519": func(h *byHand) {
			h.spki = tlv(sequenceOf, tlv(sequenceOf, tlv(oid, unhex("2b656e"))),
				tlv(bitString, []byte{0}, make([]byte, 32)))
		},
		"RSA key by the name of RSASSA-PSS": func(h *byHand) {
			h.spki = tlv(sequenceOf, tlv(sequenceOf, tlv(oid, unhex("2a864886f70d01010a"))),
				rsaBits([]byte{1, 0, 1}, 256))
		},
		"RSA key without its NULL": func(h *byHand) {
			h.spki = tlv(sequenceOf, tlv(sequenceOf, tlv(oid, unhex("2a864886f70d010101"))),
				rsaBits([]byte{1, 0, 1}, 256))
		},
		"RSA key with the exponent 1":   func(h *byHand) { h.spki = rsaSPKI([]byte{1}, 256) },
		"RSA key with an even exponent": func(h *byHand) { h.spki = rsaSPKI([]byte{1, 0, 0}, 256) },
		"RSA key with an exponent of 64 bits": func(h *byHand) {
			h.spki = rsaSPKI([]byte{1, 0, 0, 0, 0, 0, 0, 0, 1}, 256)
		},
		"RSA key with a negative exponent": func(h *byHand) { h.spki = rsaSPKI([]byte{0xff}, 256) },
		"RSA key of 2047 bits":             func(h *byHand) { h.spki = rsaSPKI([]byte{1, 0, 1}, 255) },
		"RSA key with a negative modulus": func(h *byHand) {
			h.spki = tlv(sequenceOf, h.spki[2:23],
				tlv(bitString, []byte{0},
					tlv(sequenceOf, tlv(integer, []byte{0x80}), tlv(integer, []byte{3}))))
		},
		"an algorithm nobody knows": func(h *byHand) {
			h.spki = tlv(sequenceOf, tlv(sequenceOf, tlv(oid, unhex("2a0304"))),
				tlv(bitString, []byte{0, 1}))
		},

		"attributes under another tag": func(h *byHand) { h.attributes[0] = 0xa1 },
		"attributes are a SET":         func(h *byHand) { h.attributes[0] = setOf },
		"attributes as a string":       func(h *byHand) { h.attributes[0] = 0x80 },
		"an attribute without values": func(h *byHand) {
			h.attributes = tlv(attributesTag, tlv(sequenceOf, oidBytesRequest, tlv(setOf)))
		},
		"two values of extensionRequest": func(h *byHand) {
			h.attributes = tlv(attributesTag,
				tlv(sequenceOf, oidBytesRequest, tlv(setOf, tlv(sequenceOf), tlv(sequenceOf))))
		},
		"values are a SEQUENCE": func(h *byHand) {
			h.attributes = tlv(attributesTag,
				tlv(sequenceOf, oidBytesRequest, tlv(sequenceOf, tlv(sequenceOf))))
		},
		"a third element in an attribute": func(h *byHand) {
			h.attributes = tlv(attributesTag,
				tlv(sequenceOf, oidBytesRequest, tlv(setOf, tlv(sequenceOf)), tlv(null)))
		},
		"extensionRequest twice": func(h *byHand) {
			one := tlv(sequenceOf, oidBytesRequest, tlv(setOf, tlv(sequenceOf)))
			h.attributes = tlv(attributesTag, one, one)
		},
		"nine attributes": func(h *byHand) {
			h.attributes = tlv(attributesTag,
				slices.Repeat(tlv(sequenceOf, tlv(oid, unhex("2a864886f70d010907")),
					tlv(setOf)), 9))
		},
		"Microsoft's extensionRequest": func(h *byHand) { h.attributes = microsoft(san) },
		"17 extensions":                func(h *byHand) { h.attributes = requesting(numbered(17)...) },
		"an extension twice": func(h *byHand) {
			one := tlv(sequenceOf, oidBytesSAN, tlv(octetString, san))
			h.attributes = requesting(one, one)
		},
		"an extension of four elements": func(h *byHand) {
			h.attributes = requesting(tlv(sequenceOf, oidBytesSAN, []byte{1, 1, 0xff},
				tlv(octetString, san), tlv(null)))
		},
		"an extension without a value": func(h *byHand) {
			h.attributes = requesting(tlv(sequenceOf, oidBytesSAN))
		},
		"critical is neither true nor false": func(h *byHand) {
			h.attributes = requesting(tlv(sequenceOf, oidBytesSAN, []byte{1, 1, 1},
				tlv(octetString, san)))
		},
		"an extension's value in pieces": func(h *byHand) {
			h.attributes = requesting(tlv(sequenceOf, oidBytesSAN,
				tlv(0x20|octetString, tlv(octetString, san))))
		},
		"an extension's type in a longer encoding": func(h *byHand) {
			h.attributes = requesting(tlv(sequenceOf, tlv(oid, []byte{0x55, 0x80, 0x1d, 0x11}),
				tlv(octetString, san)))
		},
		"names twice, once by the older type": func(h *byHand) {
			h.attributes = requesting(tlv(sequenceOf, oidBytesSAN, tlv(octetString, san)),
				tlv(sequenceOf, tlv(oid, []byte{0x55, 0x1d, 0x07}), tlv(octetString, san)))
		},
		"names of the issuer": func(h *byHand) { h.extend(tlv(oid, []byte{0x55, 0x1d, 0x12}), san) },
		"extended usages twice": func(h *byHand) {
			h.extend(oidBytesEKU,
				tlv(sequenceOf, slices.Repeat(tlv(oid, unhex("2b06010505070302")), 2)))
		},
		"any extended usage behind a good one": func(h *byHand) {
			h.extend(oidBytesEKU,
				tlv(sequenceOf, tlv(oid, unhex("2b06010505070302")), tlv(oid, unhex("551d2500"))))
		},
		"key usages that there are not": func(h *byHand) {
			h.extend(oidBytesKeyUsage, unhex("03 04 05 80 00 20"))
		},
		"key usages, one behind another": func(h *byHand) {
			h.extend(oidBytesKeyUsage, unhex("03 02 07 80 03 02 02 04"))
		},
		"key usages in an OCTET STRING": func(h *byHand) {
			h.extend(oidBytesKeyUsage, unhex("04 02 07 80"))
		},
		"no names in the list": func(h *byHand) { h.names() },
		"something behind the names": func(h *byHand) {
			h.extend(oidBytesSAN, append(slices.Clone(san), 5, 0))
		},
		"names in an OCTET STRING of their own": func(h *byHand) {
			h.extend(oidBytesSAN, tlv(octetString, san))
		},
		"names are a SET": func(h *byHand) {
			h.extend(oidBytesSAN, append([]byte{setOf}, san[1:]...))
		},
		"a name's length in a longer encoding": func(h *byHand) {
			h.extend(oidBytesSAN, unhex("30 04 82 81 01 61"))
		},
		"a name that does not say its length": func(h *byHand) {
			h.extend(oidBytesSAN, unhex("30 07 a2 80 16 01 61 00 00"))
		},
		"a name's tag in a longer encoding": func(h *byHand) {
			h.extend(oidBytesSAN, unhex("30 04 9f 02 01 61"))
		},
		"a constructed name": func(h *byHand) { h.names(tlv(0xa2, tlv(ia5String, []byte("a")))) },
		"a name with a universal tag": func(h *byHand) {
			h.names(tlv(0x82, []byte("a")), tlv(ia5String, []byte("b")))
		},
		"a name with an application's tag": func(h *byHand) {
			h.names(tlv(0x82, []byte("a")), tlv(0x42, []byte("b")))
		},
		"a name with a private tag": func(h *byHand) {
			h.names(tlv(0x82, []byte("a")), tlv(0xc2, []byte("b")))
		},
		"a name of a kind that there is not": func(h *byHand) {
			h.names(tlv(0x82, []byte("a")), tlv(0x89, []byte("b")))
		},
		"a name that folds to another in Unicode": func(h *byHand) {
			h.names(tlv(0x82, []byte("\u212aubernetes")))
		},
		"a name with a full-width dot": func(h *byHand) { h.names(tlv(0x82, []byte("a\uff0eb"))) },
		"a name and another behind a comma": func(h *byHand) {
			h.names(tlv(0x82, []byte("a,DNS:b")))
		},
		"a name in hexadecimal for an address": func(h *byHand) {
			h.names(tlv(0x82, []byte("0x7f000001")))
		},
		"a name in octal for an address": func(h *byHand) {
			h.names(tlv(0x82, []byte("0177.0.0.01")))
		},
		"an address of 0 bytes": func(h *byHand) { h.names(tlv(0x87)) },
		"an address with its mask": func(h *byHand) {
			h.names(tlv(0x87, []byte{10, 0, 0, 0, 255, 0, 0, 0}))
		},
		"an IPv4 address in the clothes of IPv6": func(h *byHand) {
			h.names(tlv(0x87, make([]byte, 10), []byte{255, 255, 10, 0, 0, 1}))
		},
		"an address written as text": func(h *byHand) { h.names(tlv(0x87, []byte("10.0.0.1"))) },
		"a URI with a NUL":           func(h *byHand) { h.names(tlv(0x86, []byte("spiffe://a/b\x00c"))) },
		"a URI whose host is not in lower case": func(h *byHand) {
			h.names(tlv(0x86, []byte("spiffe://A/b")))
		},
		"an email address with a second @": func(h *byHand) { h.names(tlv(0x81, []byte("a@b@c"))) },
		"an otherName that is a DNS name inside": func(h *byHand) {
			h.names(tlv(0x82, []byte("a")),
				tlv(0xa0, oidBytesCN, tlv(0xa0, tlv(utf8String, []byte("b")))))
		},
		"a directory name with a common name in it": func(h *byHand) {
			h.names(tlv(0x82, []byte("a")), tlv(0xa4, h.subject))
		},
	} {
		t.Run(name, func(t *testing.T) {
			requireFaultOutside(t, "request.signature", change)
		})
	}
}

// Whoever cannot sign the whole of it with the key in it has not shown that the key is its own.
func TestSignaturesMadeByHandAreRefused(t *testing.T) {
	other := must.Value(x509.MarshalPKIXPublicKey(pkcs10test.NewKey(t).Public()))(t)
	for name, change := range map[string]func(h *byHand){
		"key of somebody else": func(h *byHand) { h.spki = other },
		"signature with parameters": func(h *byHand) {
			h.algorithm = tlv(sequenceOf, h.algorithm[2:], tlv(null))
		},
		"signature algorithm of three elements": func(h *byHand) {
			h.algorithm = tlv(sequenceOf, h.algorithm[2:], tlv(null), tlv(null))
		},
		"signature of RSA by an ECDSA key": func(h *byHand) {
			h.algorithm = tlv(sequenceOf, tlv(oid, unhex("2a864886f70d01010b")), tlv(null))
		},
		"signature with SHA-1": func(h *byHand) {
			h.algorithm = tlv(sequenceOf, tlv(oid, unhex("2a8648ce3d0401")))
		},
		"signature with SHA-224": func(h *byHand) {
			h.algorithm = tlv(sequenceOf, tlv(oid, unhex("2a8648ce3d040301")))
		},
		"signature with another hash than said": func(h *byHand) {
			h.algorithm = tlv(sequenceOf, tlv(oid, unhex("2a8648ce3d040303")))
		},
		"signature of zeros": func(h *byHand) {
			h.signature = func([]byte) []byte {
				return tlv(bitString, []byte{0}, unhex("3006020100020100"))
			}
		},
		"signature with something behind it": func(h *byHand) {
			h.signature = func(s []byte) []byte { return tlv(bitString, []byte{0}, s, []byte{0}) }
		},
		"signature in negative numbers": func(h *byHand) {
			h.signature = func([]byte) []byte {
				return tlv(bitString, []byte{0}, unhex("3006020180020180"))
			}
		},
		"no signature": func(h *byHand) {
			h.signature = func([]byte) []byte { return tlv(bitString, []byte{0}) }
		},
		"signature in an OCTET STRING": func(h *byHand) {
			h.signature = func(s []byte) []byte { return tlv(octetString, s) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newByHand(t)
			change(h)
			if _, faults := Parse(pkcs10test.Encode(h.der(t))); len(faults) != 1 ||
				faults[0].Field != "request.signature" && faults[0].Field != "request" {
				t.Errorf("faults %v", faults)
			}
		})
	}
}

// requireFaultOutside changes a good request and requires a fault that is not in the field.
func requireFaultOutside(t *testing.T, field string, change func(h *byHand)) {
	t.Helper()
	h := newByHand(t)
	change(h)
	_, faults := Parse(pkcs10test.Encode(h.der(t)))
	if !slices.ContainsFunc(faults, func(f Fault) bool { return f.Field != field }) {
		t.Errorf("no fault outside %s; got %v", field, faults)
	}
}

// requireFaultIn requires a fault in the field.
func requireFaultIn(t *testing.T, text []byte, field string) {
	t.Helper()
	_, faults := Parse(text)
	if !slices.ContainsFunc(faults, func(f Fault) bool { return f.Field == field }) {
		t.Errorf("no fault in %s; got %v", field, faults)
	}
}

// twice is a subject whose one RDN has two common names.
func twice(cn []byte) []byte {
	return tlv(sequenceOf,
		tlv(setOf, tlv(sequenceOf, cn, tlv(utf8String, []byte("a"))),
			tlv(sequenceOf, cn, tlv(utf8String, []byte("b")))))
}

// third is a subject whose common name is followed by another value.
func third() []byte {
	return tlv(sequenceOf,
		tlv(setOf,
			tlv(sequenceOf, oidBytesCN, tlv(utf8String, []byte("a")),
				tlv(utf8String, []byte("b")))))
}

// longer is a subject with 2.5.4.3 in one byte more than it needs.
func longer() []byte {
	return tlv(sequenceOf,
		tlv(setOf,
			tlv(sequenceOf, tlv(oid, []byte{0x55, 0x80, 0x04, 0x03}),
				tlv(utf8String, []byte("a")))))
}

func microsoft(san []byte) []byte {
	szOIDCertExtensions := tlv(oid, unhex("2b060104018237 02010e"))
	return tlv(attributesTag,
		tlv(sequenceOf, szOIDCertExtensions,
			tlv(setOf, tlv(sequenceOf, tlv(sequenceOf, oidBytesSAN, tlv(octetString, san))))))
}

func numbered(n int) (extensions [][]byte) {
	for i := range n {
		extensions = append(extensions,
			tlv(sequenceOf, tlv(oid, []byte{0x2a, 3, byte(i)}), tlv(octetString)))
	}
	return extensions
}

// spkiOf is the key on P-256 with its point in that encoding.
func spkiOf(h *byHand, point []byte) []byte {
	return tlv(sequenceOf, h.spki[2:23], tlv(bitString, []byte{0}, point))
}

func hybrid(h *byHand) []byte {
	point := slices.Clone(h.spki[len(h.spki)-65:])
	point[0] = 6 | point[64]&1 // X9.62, section 4.3.6
	return point
}

// rsaSPKI is an RSA key with an odd modulus of so many bytes, of which the first two bits are set
// when there are 256.
func rsaSPKI(exponent []byte, size int) []byte {
	return tlv(sequenceOf, tlv(sequenceOf, tlv(oid, unhex("2a864886f70d010101")), tlv(null)),
		rsaBits(exponent, size))
}

func rsaBits(exponent []byte, size int) []byte {
	modulus := bytes.Repeat([]byte{0xc1}, size)
	return tlv(bitString, []byte{0},
		tlv(sequenceOf, tlv(integer, []byte{0}, modulus), tlv(integer, exponent)))
}

// A BIT STRING can say that its last bits are unused, and encoding/asn1 shifts the rest to the
// right: a signature that begins with zeros has a second encoding, by which it verifies.
func TestSignatureShiftedWithinItsBitsIsRefused(t *testing.T) {
	key := must.Value(rsa.GenerateKey(rand.Reader, 2048))(t)
	h := newByHand(t)
	h.spki = must.Value(x509.MarshalPKIXPublicKey(key.Public()))(t)
	algorithm := tlv(sequenceOf, tlv(oid, unhex("2a864886f70d01010b")), tlv(null))
	for i := 0; ; i++ {
		h.subject = subjectOf(tlv(utf8String, []byte("a"+strconv.Itoa(i))))
		tbs := tlv(sequenceOf, h.version, h.subject, h.spki, h.attributes)
		digest := sha256.Sum256(tbs)
		signature := must.Value(rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:]))(t)
		if signature[0] >= 0x10 {
			continue
		}
		shifted := new(big.Int).Lsh(new(big.Int).SetBytes(signature),
			4).FillBytes(make([]byte, len(signature)))
		der := tlv(sequenceOf, tbs, algorithm, tlv(bitString, []byte{4}, shifted))
		csr := must.Value(x509.ParseCertificateRequest(der))(t)
		if err := csr.CheckSignature(); err != nil {
			t.Fatalf("crypto/x509 does not take it any more: %v", err)
		}
		requireFault(t, pkcs10test.Encode(der), "request.signature", "unused bits")
		return
	}
}

// Each of these texts is of the same good request, and reads otherwise to one who is less strict.
func TestTextsMadeByHandAreRefused(t *testing.T) {
	h := newByHand(t)
	der := h.der(t)
	// so that the base64 has bits to spare; the length of the signature varies
	for len(der)%3 != 1 {
		der = h.der(t)
	}
	good := string(pkcs10test.Encode(der))
	if _, faults := Parse([]byte(good)); len(faults) > 0 {
		t.Fatalf("the text without a defect: %v", faults)
	}
	begin, end := "-----BEGIN CERTIFICATE REQUEST-----\n", "\n-----END CERTIFICATE REQUEST-----\n"
	body := strings.TrimSuffix(strings.TrimPrefix(good, begin), end)
	spare := strings.LastIndex(body, "==") - 1 // its lower four bits are nobody's
	for name, text := range map[string]string{
		"bits that are not the DER's": begin + body[:spare] + string(next(body[spare])) +
			body[spare+1:] + end,
		"a space within a line":             begin + body[:10] + " " + body[10:] + end,
		"a tab before a line":               begin + "\t" + body + end,
		"a form feed within":                begin + body[:10] + "\f" + body[10:] + end,
		"a NUL within":                      begin + body[:10] + "\x00" + body[10:] + end,
		"base64 in the first line":          strings.TrimSuffix(begin, "\n") + body + end,
		"base64 in the last line":           begin + body + strings.TrimPrefix(end, "\n"),
		"another dash at the end":           begin + body + strings.TrimSuffix(end, "\n") + "-\n",
		"another type at the end":           begin + body + "\n-----END CERTIFICATE-----\n",
		"no last line":                      begin + body,
		"the first line twice":              begin + begin + body + end,
		"a block within the block":          begin + "-----BEGIN X-----\nAAAA\n-----END X-----\n" + body + end,
		"a last line before the last":       begin + body + end + end,
		"padding, and more behind it":       begin + body + "\n" + body + end,
		"base64 for URLs":                   begin + strings.NewReplacer("+", "-", "/", "_").Replace(body) + "-_" + end,
		"a comment":                         begin + "# a comment\n" + body + end,
		"a header without a name":           begin + ": \n\n" + body + end,
		"a checksum as in OpenPGP":          begin + body + "\n=AAAA" + end,
		"nothing":                           begin + end,
		"ends of lines that are returns":    strings.ReplaceAll(begin+body+end, "\n", "\r"),
		"the lower part of the alphabet":    strings.ToLower(begin + body + end),
		"a space before the first line":     " " + good,
		"a space behind the first line":     strings.Replace(begin, "\n", " \n", 1) + body + end,
		"UTF-16":                            strings.Join(strings.Split(good, ""), "\x00"),
		"another beginning before":          "-----BEGIN X-----\n" + good,
		"a beginning within a line before":  "x -----BEGIN CERTIFICATE REQUEST----- y\n" + good,
		"the request twice, one in a line":  "x" + good + good,
		"a return before the first line":    "x\r" + good,
		"a byte order mark":                 "\ufeff" + good,
		"a NUL in the text before":          "x\x00\n" + good,
		"an escape sequence before":         "\x1b[2J\n" + good,
		"text before that is no UTF-8":      "\xff\n" + good,
		"an end without a beginning before": strings.TrimPrefix(end, "\n") + good,
	} {
		t.Run(name, func(t *testing.T) { requireFaultIn(t, []byte(text), "request") })
	}
}

// next is another digit of base64, with the same upper bits.
func next(digit byte) byte {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	return digits[strings.IndexByte(digits, digit)|1]
}

// For a key of small order a signature is found without any private key, which Go's verification
// takes; so it proves nothing about the requester.
func TestEd25519KeysOfSmallOrderAreRefused(t *testing.T) {
	ed := tlv(sequenceOf, tlv(oid, unhex("2b6570")))
	for _, text := range smallOrder {
		for _, sign := range []byte{0, 0x80} {
			key := ed25519.PublicKey(unhex(text))
			key[31] |= sign
			forged := forge(t, ed, key)
			requireFault(t, pkcs10test.Encode(forged), "request.publicKey", "small order")
		}
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	must.OK(t, err)
	if r, faults := Parse(pkcs10test.Request{Key: private,
		DNSNames: []string{"a"}}.PEM(t)); len(faults) > 0 || !public.Equal(r.PublicKey) {
		t.Errorf("a good key: %v", faults)
	}
}

// forge makes a request of the key for which the signature R=1, S=0 verifies.
func forge(t *testing.T, algorithm []byte, key ed25519.PublicKey) []byte {
	t.Helper()
	signature := append([]byte{1}, make([]byte, 63)...)
	h := newByHand(t)
	h.spki = tlv(sequenceOf, algorithm, tlv(bitString, []byte{0}, key))
	for i := range uint32(1000) {
		h.subject = subjectOf(tlv(ia5String,
			[]byte(base64.RawStdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, i)))))
		tbs := tlv(sequenceOf, h.version, h.subject, h.spki, h.attributes)
		if ed25519.Verify(key, tbs, signature) {
			return tlv(sequenceOf, tbs, algorithm, tlv(bitString, []byte{0}, signature))
		}
	}
	t.Fatalf("no signature was found for the key %x", key)
	return nil
}

// gnuTLS is what certtool of GnuTLS writes before a request, in short.
const gnuTLS = `PKCS #10 Certificate Request Information:
	Version: 1
	Subject: CN=typha-server
	Subject Public Key Algorithm: EC/ECDSA
	Public key's random art:
		+--[SECP256R1]----+
		|       .+B*      |
		+-----------------+

Self signature: verified
`

// Text before the block changes nothing of what is read.
func TestTextBeforeTheBlockIsSkipped(t *testing.T) {
	good := pkcs10test.Request{DNSNames: []string{"typha-server"}}.PEM(t)
	want, faults := Parse(good)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	for name, text := range map[string]string{
		"GnuTLS": gnuTLS, "an empty line": "\n", "a line": "x\n",
		"ends of lines of Windows": "x\r\n\r\n", "beyond ASCII": "für Typha\n",
		"another name": "-----\nSubject: CN=kubernetes\n",
	} {
		got, faults := Parse(append([]byte(text), good...))
		if len(faults) > 0 || got.SHA256 != want.SHA256 || got.DNSNames[0] != "typha-server" {
			t.Errorf("%s: %v", name, faults)
			continue
		}
		block, rest := pem.Decode(append([]byte(text), good...)) // as the API server does
		if block == nil || len(rest) > 0 || sha256.Sum256(block.Bytes) != got.SHA256 {
			t.Errorf("%s: the API server would read another request", name)
		}
	}
}
