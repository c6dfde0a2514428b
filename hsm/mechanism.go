//go:build cgo

package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/csign"
)

// A mechanism makes the signatures of one kind of key with mechanisms that every token has:
// CKM_RSA_PKCS, CKM_RSA_PKCS_PSS and CKM_ECDSA over a digest that is computed here. Ed25519 signs
// the text itself, on tokens that support it.
type mechanism interface {
	// prepare returns what the token needs to sign a digest, except the key.
	prepare(digest []byte, opts crypto.SignerOpts) (csign.Request, error)
	// finish converts the token's signature to the form of X.509.
	finish(raw []byte) ([]byte, error)
}

func mechanismFor(public crypto.PublicKey) (mechanism, error) {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return rsaMechanism{key}, nil
	case *ecdsa.PublicKey:
		return ecdsaMechanism{key}, nil
	case ed25519.PublicKey:
		return ed25519Mechanism{}, nil
	}
	return nil, faultf(ErrKey, "a CA key of type %T is not supported: use RSA, ECDSA or Ed25519",
		public)
}

type rsaMechanism struct{ key *rsa.PublicKey }

func (m rsaMechanism) prepare(digest []byte,
	opts crypto.SignerOpts) (csign.Request, error) {
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		return m.preparePSS(digest, pss)
	}
	info, err := digestInfo(opts.HashFunc(), digest)
	return csign.Request{Mechanism: pkcs11.CKM_RSA_PKCS, Input: info, Length: m.key.Size()}, err
}

// preparePSS uses the salt length of X.509, which is the length of the hash (RFC 4055, section 3.1,
// and Go's crypto/x509).
func (m rsaMechanism) preparePSS(digest []byte,
	opts *rsa.PSSOptions) (csign.Request, error) {
	hash, known := map[crypto.Hash][2]uint{
		crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
		crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
		crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
	}[opts.HashFunc()]
	if !known ||
		(opts.SaltLength != rsa.PSSSaltLengthEqualsHash &&
			opts.SaltLength != opts.HashFunc().Size()) {
		return csign.Request{}, fmt.Errorf("RSA-PSS with %s and a salt of %d bytes is not "+
			"supported", opts.HashFunc(), opts.SaltLength)
	}
	params := pkcs11.NewPSSParams(hash[0], hash[1], uint(opts.HashFunc().Size()))
	return csign.Request{Mechanism: pkcs11.CKM_RSA_PKCS_PSS, Parameter: params, Input: digest,
		Length: m.key.Size()}, nil
}

func (m rsaMechanism) finish(raw []byte) ([]byte, error) {
	if size := m.key.Size(); len(raw) != size {
		return nil, wrongLength(raw, size, "the length of the modulus")
	}
	return raw, nil
}

// digestInfo returns the input of RSA with PKCS#1 v1.5 (RFC 8017, section 9.2).
func digestInfo(hash crypto.Hash, digest []byte) ([]byte, error) {
	oid, known := map[crypto.Hash]asn1.ObjectIdentifier{
		crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1},
		crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2},
		crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3},
	}[hash]
	if !known || len(digest) != hash.Size() {
		return nil, fmt.Errorf("a digest of %d bytes by %s cannot be signed", len(digest), hash)
	}
	type algorithm struct {
		OID        asn1.ObjectIdentifier
		Parameters asn1.RawValue
	}
	return asn1.Marshal(struct {
		Algorithm algorithm
		Digest    []byte
	}{algorithm{oid, asn1.NullRawValue}, digest})
}

type ecdsaMechanism struct{ key *ecdsa.PublicKey }

// prepare truncates the digest to the length of the curve's order, since not every
// token does (FIPS 186-5, section 6.4.1).
func (m ecdsaMechanism) prepare(digest []byte,
	_ crypto.SignerOpts) (csign.Request, error) {
	if size := m.size(); len(digest) > size {
		digest = digest[:size]
	}
	return csign.Request{Mechanism: pkcs11.CKM_ECDSA, Input: digest, Length: 2 * m.size()}, nil
}

func (m ecdsaMechanism) size() int { return (m.key.Params().N.BitLen() + 7) / 8 }

// finish turns r and s of equal length (PKCS#11 v2.40, section 2.3.1) into
// ECDSA-Sig-Value (RFC 5480, appendix A).
func (m ecdsaMechanism) finish(raw []byte) ([]byte, error) {
	if len(raw) != 2*m.size() {
		return nil, m.wrongForm(raw)
	}
	body := make([]byte, 0, len(raw)+6)
	body = appendInteger(appendInteger(body, raw[:m.size()]), raw[m.size():])
	der := append(make([]byte, 0, len(body)+3), sequence)
	if len(body) >= 128 { // the length follows in one byte
		der = append(der, 0x81)
	}
	return append(append(der, byte(len(body))), body...), nil
}

// sequence is the tag of a SEQUENCE in DER.
const sequence = 0x20 | asn1.TagSequence

// appendInteger appends a positive number of at most 126 bytes as an INTEGER in DER (X.690, section
// 8.3). encoding/asn1 would make 23 allocations for a signature instead of 2.
func appendInteger(der, number []byte) []byte {
	number = bytes.TrimLeft(number, "\x00")
	if len(number) == 0 || number[0] >= 0x80 { // a leading bit that is set means a negative number
		der = append(der, asn1.TagInteger, byte(len(number)+1), 0)
	} else {
		der = append(der, asn1.TagInteger, byte(len(number)))
	}
	return append(der, number...)
}

// wrongForm returns the error for a signature that does not have the length of r and s.
func (m ecdsaMechanism) wrongForm(raw []byte) error {
	var der struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(raw, &der); err == nil && len(rest) == 0 {
		return &formError{fmt.Sprintf("it is in DER (%d bytes), and PKCS#11 v2.40, section "+
			"2.3.1, requires r and s, %d bytes each", len(raw), m.size())}
	}
	return wrongLength(raw, 2*m.size(), "r and s of equal length")
}

type ed25519Mechanism struct{}

// ckmEdDSA is CKM_EDDSA of PKCS#11 v3.0, section 2.3.14, which the binding has no name for.
const ckmEdDSA = 0x1057

// prepare takes the text, not a digest: Ed25519 hashes it twice (RFC 8032, section 5.1.6).
func (ed25519Mechanism) prepare(text []byte,
	opts crypto.SignerOpts) (csign.Request, error) {
	if opts.HashFunc() != 0 {
		return csign.Request{}, fmt.Errorf("Ed25519 signs the text itself, not a digest by %s",
			opts.HashFunc())
	}
	return csign.Request{Mechanism: ckmEdDSA, Input: text, Length: ed25519.SignatureSize}, nil
}

func (ed25519Mechanism) finish(raw []byte) ([]byte, error) {
	if len(raw) != ed25519.SignatureSize {
		return nil, wrongLength(raw, ed25519.SignatureSize, "RFC 8032")
	}
	return raw, nil
}

// signatureLengths are those of the keys that a token may hold: of ECDSA with P-224 to P-521, of
// Ed25519 and Ed448, and of RSA.
var signatureLengths = []int{56, 64, 96, 132, 114, 128, 256, 384, 512, 1024}

// wrongLength returns the error for a signature that does not have the length of the CA's. With the
// length of another kind of key, the key is another one; else the module gets the form wrong.
func wrongLength(raw []byte, want int, form string) error {
	if slices.Contains(signatureLengths, len(raw)) {
		return faultf(ErrKey, "its signatures have %d bytes; those of the certificate's key "+
			"have %d", len(raw), want)
	}
	return &formError{fmt.Sprintf("it has %d bytes, and PKCS#11 requires %d (%s)", len(raw), want,
		form)}
}

// A formError says that a module returned a signature in a form that PKCS#11 does not have. It says
// nothing about the key. Another signature may be right: some modules drop leading zeros.
type formError struct{ text string }

// Error says what is wrong with the form.
func (e *formError) Error() string {
	return "the module returned a signature in the wrong form: " + e.text +
		": report it with the module's name and version, and use a version of the module that " +
		"follows PKCS#11"
}
