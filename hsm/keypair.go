//go:build cgo

package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"
)

// A KeyPair is a key pair as its token describes it.
type KeyPair struct {
	ID     KeyID // its label and its id, whole
	Public crypto.PublicKey
	Type   string      // one of [KeyTypes]
	Uses   []Attribute // what the private half may do besides signing
}

// lookUp finds the one private key that matches, and its public half.
func (c *Ceremony) lookUp(ctx context.Context, want KeyID,
	known crypto.PublicKey) (KeyPair, error) {
	if err := c.conn.findKey(ctx, want); err != nil {
		return KeyPair{}, err
	}
	pair := KeyPair{ID: c.idOf(ctx, c.conn.key), Uses: c.uses(ctx, c.conn.key)}
	public, err := c.publicOf(ctx, c.conn.key, pair.ID)
	switch {
	case err == nil:
		pair.Public = public
	case known != nil && errors.Is(err, errNoPublic):
		pair.Public = known
	default:
		return KeyPair{}, fmt.Errorf("the private %s: %w", pair.ID, err)
	}
	pair.Type, err = typeOf(pair.Public)
	return pair, err
}

func (c *Ceremony) idOf(ctx context.Context, key pkcs11.ObjectHandle) KeyID {
	var id KeyID
	if label, err := c.conn.Attribute(ctx, key, pkcs11.CKA_LABEL); err == nil {
		id.Label = string(label)
	}
	if number, err := c.conn.Attribute(ctx, key, pkcs11.CKA_ID); err == nil {
		id.ID = number
	}
	return id
}

// useAttributes are permissions that a CA's key does not need. One that is set is worth a warning.
var useAttributes = []struct {
	kind uint
	name string
}{
	{pkcs11.CKA_DECRYPT, "CKA_DECRYPT"}, {pkcs11.CKA_UNWRAP, "CKA_UNWRAP"}, {pkcs11.CKA_DERIVE,
		"CKA_DERIVE"},
}

func (c *Ceremony) uses(ctx context.Context, key pkcs11.ObjectHandle) []Attribute {
	var all []Attribute
	for _, a := range useAttributes {
		value, err := c.conn.Attribute(ctx, key, a.kind)
		known := err == nil && len(value) == 1
		all = append(all, Attribute{Name: a.name, Known: known, Is: known && value[0] != 0})
	}
	return all
}

// errNoPublic is the error for tokens that keep only private keys.
var errNoPublic = errors.New("its public half is not in the token: import the public key too, " +
	"with the same CKA_ID")

// publicOf reads the public half from the matching public key. If there is none it reads an RSA
// key's from the private key.
func (c *Ceremony) publicOf(ctx context.Context, private pkcs11.ObjectHandle,
	id KeyID) (crypto.PublicKey, error) {
	kind, err := c.conn.Attribute(ctx, private, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return nil, unavailable(err, "read CKA_KEY_TYPE")
	}
	halves, err := c.findPublic(ctx, kind, id)
	switch {
	case err != nil:
		return nil, unavailable(err, "look for its public half")
	case len(halves) > 1:
		return nil, faultf(ErrKey, "%d public keys could be its other half: give each key pair "+
			"its own CKA_ID", len(halves))
	case len(halves) == 1:
		return c.readPublic(ctx, halves[0], number(kind))
	case number(kind) == pkcs11.CKK_RSA:
		return c.readPublic(ctx, private, pkcs11.CKK_RSA)
	}
	return nil, errNoPublic
}

// findPublic finds the public keys with the id, and with the label too if the id matches several.
// The halves of a pair share an id; their labels may differ.
func (c *Ceremony) findPublic(ctx context.Context, kind []byte,
	id KeyID) ([]pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		{Type: pkcs11.CKA_KEY_TYPE, Value: kind}}
	label := pkcs11.NewAttribute(pkcs11.CKA_LABEL, id.Label)
	if len(id.ID) == 0 {
		return c.conn.Find(ctx, append(template, label))
	}
	template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, id.ID))
	halves, err := c.conn.Find(ctx, template)
	if err == nil && len(halves) > 1 && id.Label != "" {
		return c.conn.Find(ctx, append(template, label))
	}
	return halves, err
}

func (c *Ceremony) readPublic(ctx context.Context, key pkcs11.ObjectHandle,
	kind uint) (crypto.PublicKey, error) {
	first, second, parse := uint(pkcs11.CKA_EC_PARAMS), uint(pkcs11.CKA_EC_POINT), parseECDSA
	switch kind {
	case pkcs11.CKK_RSA:
		first, second, parse = pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT, parseRSA
	case pkcs11.CKK_EC:
	case ckkECEdwards:
		parse = parseEd25519
	default:
		return nil, faultf(ErrKey, "its type is not supported (CKA_KEY_TYPE 0x%x): use one of %v",
			kind, KeyTypes())
	}
	a, err := c.conn.Attribute(ctx, key, first)
	if err != nil {
		return nil, unavailable(err, "read its public half")
	}
	b, err := c.conn.Attribute(ctx, key, second)
	if err != nil {
		return nil, unavailable(err, "read its public half")
	}
	return parse(a, b)
}

// number reads a CK_ULONG.
func number(value []byte) uint {
	switch len(value) {
	case 4:
		return uint(binary.NativeEndian.Uint32(value))
	case 8:
		return uint(binary.NativeEndian.Uint64(value))
	}
	return ^uint(0)
}

func parseRSA(modulus, exponent []byte) (crypto.PublicKey, error) {
	n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	if n.Sign() == 0 || !e.IsInt64() || e.Int64() < 3 || e.Int64() >= 1<<31 {
		return nil, faultf(ErrKey, "its public half is not a usable RSA key: modulus of %d bits, "+
			"exponent %s", n.BitLen(), e)
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

// curveIDs are those of RFC 5480, section 2.1.1.1.
var curveIDs = []struct {
	id    asn1.ObjectIdentifier
	curve elliptic.Curve
}{
	{asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, elliptic.P256()},
	{asn1.ObjectIdentifier{1, 3, 132, 0, 34}, elliptic.P384()},
	{asn1.ObjectIdentifier{1, 3, 132, 0, 35}, elliptic.P521()},
}

func parseECDSA(params, point []byte) (crypto.PublicKey, error) {
	var id asn1.ObjectIdentifier
	if _, err := asn1.Unmarshal(params, &id); err != nil {
		return nil, faultf(ErrKey, "its curve is not one of P-256, P-384 and P-521 "+
			"(CKA_EC_PARAMS %x)", params)
	}
	for _, known := range curveIDs {
		if !known.id.Equal(id) {
			continue
		}
		size := (known.curve.Params().BitSize + 7) / 8
		key, err := ecdsa.ParseUncompressedPublicKey(known.curve, unwrapPoint(point, 1+2*size))
		if err != nil {
			return nil, faultf(ErrKey, "its CKA_EC_POINT (%x) is not a point of %s", point,
				known.curve.Params().Name)
		}
		return key, nil
	}
	return nil, faultf(ErrKey, "its curve is not one of P-256, P-384 and P-521 (object "+
		"identifier %s)", id)
}

func parseEd25519(params, point []byte) (crypto.PublicKey, error) {
	point = unwrapPoint(point, ed25519.PublicKeySize)
	// The object identifier is that of RFC 8410, section 3.
	named := bytes.Equal(params, edwards25519) ||
		bytes.Equal(params, []byte{asn1.TagOID, 3, 0x2b, 0x65, 0x70})
	if !named || len(point) != ed25519.PublicKeySize {
		return nil, faultf(ErrKey, "its curve is not edwards25519 (CKA_EC_PARAMS %x, "+
			"CKA_EC_POINT of %d bytes)", params, len(point))
	}
	return ed25519.PublicKey(point), nil
}

// unwrapPoint takes a point out of the OCTET STRING that it should be in (PKCS#11 v2.40,
// section 2.3.3), or the BIT STRING of a SubjectPublicKeyInfo, which some tokens return. Others
// return the point alone.
func unwrapPoint(point []byte, size int) []byte {
	var octets []byte
	if rest, err := asn1.Unmarshal(point, &octets); err == nil && len(rest) == 0 &&
		len(octets) == size {
		return octets
	}
	var bits asn1.BitString
	if rest, err := asn1.Unmarshal(point, &bits); err == nil && len(rest) == 0 &&
		bits.BitLength == 8*size {
		return bits.Bytes
	}
	return point
}

// typeOf returns the type of a key, as users write it.
func typeOf(public crypto.PublicKey) (string, error) {
	for _, kind := range keyKinds {
		if kind.is(public) {
			return kind.name, nil
		}
	}
	what := fmt.Sprintf("%T", public)
	if key, ok := public.(*rsa.PublicKey); ok {
		what = fmt.Sprintf("RSA of %d bits", key.N.BitLen())
	}
	return "", faultf(ErrKey, "a CA key of this kind (%s) is not supported: use one of %v", what,
		KeyTypes())
}

// is reports whether the key is of this kind.
func (k keyKind) is(public crypto.PublicKey) bool {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		return k.curve == key.Curve
	case *rsa.PublicKey:
		return k.bits == key.N.BitLen()
	case ed25519.PublicKey:
		return k.curve == nil && k.bits == 0
	}
	return false
}
