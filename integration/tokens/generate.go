package tokens

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// A keyKind has the parameters of a type of key.
type keyKind struct {
	mechanism uint
	attribute *pkcs11.Attribute
	curve     elliptic.Curve // nil: RSA
}

func kindOf(keyType string) (keyKind, error) {
	rsa := func(bits int) (keyKind, error) {
		return keyKind{pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN,
			pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, bits), nil}, nil
	}
	ec := func(curve elliptic.Curve, oid ...int) (keyKind, error) {
		der, err := asn1.Marshal(asn1.ObjectIdentifier(oid))
		return keyKind{pkcs11.CKM_EC_KEY_PAIR_GEN, pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, der),
			curve}, err
	}
	switch keyType {
	case "ecdsa-p256":
		return ec(elliptic.P256(), 1, 2, 840, 10045, 3, 1, 7)
	case "ecdsa-p384":
		return ec(elliptic.P384(), 1, 3, 132, 0, 34)
	case "ecdsa-p521":
		return ec(elliptic.P521(), 1, 3, 132, 0, 35)
	case "rsa-2048":
		return rsa(2048)
	case "rsa-3072":
		return rsa(3072)
	case "rsa-4096":
		return rsa(4096)
	}
	return keyKind{}, fmt.Errorf("%q is no type of key", keyType)
}

// Generate creates a key with the attributes that hsm-signer requires, and returns its public key.
// It loads the module into this process, which must have the variables in Env and must not use the
// module at the same time.
func (t *Token) Generate(keyType, label string, id []byte) (_ crypto.PublicKey, err error) {
	kind, err := kindOf(keyType)
	if err != nil {
		return nil, err
	}
	module := pkcs11.New(t.Module)
	if module == nil {
		return nil, fmt.Errorf("%s cannot be loaded", t.Module)
	}
	defer module.Destroy()
	if err := module.Initialize(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, module.Finalize()) }()
	session, err := t.login(module)
	if err != nil {
		return nil, err
	}
	public, private := t.attributes(kind, label, id)
	handle, _, err := module.GenerateKeyPair(session,
		[]*pkcs11.Mechanism{pkcs11.NewMechanism(kind.mechanism, nil)}, public, private)
	if err != nil {
		return nil, fmt.Errorf("make a key of type %s: %w", keyType, err)
	}
	return publicKey(module, session, handle, kind)
}

// login opens a read-write session and logs in.
func (t *Token) login(module *pkcs11.Ctx) (pkcs11.SessionHandle, error) {
	slots, err := module.GetSlotList(true)
	if err != nil {
		return 0, err
	}
	for _, slot := range slots {
		info, err := module.GetTokenInfo(slot)
		if err != nil || strings.TrimRight(info.Label, " \x00") != t.Label {
			continue
		}
		session, err := module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return 0, err
		}
		return session, module.Login(session, pkcs11.CKU_USER, t.PIN)
	}
	return 0, fmt.Errorf("none of %d tokens is labelled %q", len(slots), t.Label)
}

// attributes returns the attributes that the ceremony sets, without those that this kind of token
// does not accept.
func (t *Token) attributes(kind keyKind, label string, id []byte) (public,
	private []*pkcs11.Attribute) {
	a := pkcs11.NewAttribute
	both := []*pkcs11.Attribute{a(pkcs11.CKA_TOKEN, true), a(pkcs11.CKA_LABEL, label),
		a(pkcs11.CKA_ID, id)}
	public = append(slices.Clone(both), kind.attribute,
		a(pkcs11.CKA_VERIFY, true), a(pkcs11.CKA_ENCRYPT, false), a(pkcs11.CKA_WRAP, false))
	if kind.curve == nil {
		public = append(public, a(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	}
	private = append(slices.Clone(both),
		a(pkcs11.CKA_PRIVATE, true), a(pkcs11.CKA_SENSITIVE, true), a(pkcs11.CKA_EXTRACTABLE,
			false), a(pkcs11.CKA_SIGN, true),
		a(pkcs11.CKA_DECRYPT, false), a(pkcs11.CKA_UNWRAP, false), a(pkcs11.CKA_DERIVE, false))
	unsaid := func(a *pkcs11.Attribute) bool { return slices.Contains(t.Can.Unsaid, a.Type) }
	return slices.DeleteFunc(public, unsaid), slices.DeleteFunc(private, unsaid)
}

// errPoint means that the token created a key whose public key cannot be read.
var errPoint = errors.New("CKA_EC_POINT is no octet string in DER")

func publicKey(module *pkcs11.Ctx, session pkcs11.SessionHandle, handle pkcs11.ObjectHandle,
	kind keyKind) (crypto.PublicKey, error) {
	read := func(attribute uint) ([]byte, error) {
		values, err := module.GetAttributeValue(session, handle,
			[]*pkcs11.Attribute{pkcs11.NewAttribute(attribute, nil)})
		if err != nil {
			return nil, fmt.Errorf("read the public key: %w", err)
		}
		return values[0].Value, nil
	}
	if kind.curve == nil {
		modulus, err := read(pkcs11.CKA_MODULUS)
		return &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: 65537}, err
	}
	der, err := read(pkcs11.CKA_EC_POINT)
	if err != nil {
		return nil, err
	}
	var point []byte
	if _, err := asn1.Unmarshal(der, &point); err != nil {
		return nil, fmt.Errorf("%w: %x: %w", errPoint, der, err)
	}
	return ecdsa.ParseUncompressedPublicKey(kind.curve, point)
}
