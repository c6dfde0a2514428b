package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"

	"github.com/eclipse-keypont/crypto11"
	"github.com/miekg/pkcs11"
)

// A Ceremony makes and looks up keys in a token, once, by hand. The running
// service never uses it.
type Ceremony struct {
	config Config
	ctx    *crypto11.Context
}

// OpenCeremony logs in to the token for a ceremony. Close it at the end.
func OpenCeremony(c Config) (*Ceremony, error) {
	slot, err := checkToken(c)
	if err != nil {
		return nil, err
	}
	pin, err := c.PIN()
	if err != nil {
		return nil, err
	}
	number := int(slot)
	ctx, err := crypto11.Configure(&crypto11.Config{Path: c.Module, SlotNumber: &number, Pin: string(pin)})
	if err != nil {
		return nil, unavailable(err, "open the %s", c.Token)
	}
	return &Ceremony{config: c, ctx: ctx}, nil
}

// checkToken finds the slot of the one token that matches and tries the PIN once. crypto11
// would take a wrong PIN for right where an application is logged in already.
func checkToken(c Config) (uint, error) {
	ctx, c := context.Background(), c.withDefaults(nil)
	l, err := load(ctx, c, &counts{})
	if err != nil {
		return 0, err
	}
	defer l.close(ctx)
	conn, err := connect(ctx, l, c)
	if err != nil {
		return 0, err
	}
	defer conn.close()
	return conn.slot, nil
}

// keyKinds are the kinds of key that a ceremony makes: a curve, or a size of RSA.
var keyKinds = []struct {
	name  string
	curve elliptic.Curve
	bits  int
}{
	{"ecdsa-p256", elliptic.P256(), 0}, {"ecdsa-p384", elliptic.P384(), 0}, {"ecdsa-p521", elliptic.P521(), 0},
	{"rsa-2048", nil, 2048}, {"rsa-3072", nil, 3072}, {"rsa-4096", nil, 4096}, {"rsa-8192", nil, 8192},
}

// KeyTypes are the types of key that [Ceremony.Generate] makes.
func KeyTypes() []string {
	names := make([]string, 0, len(keyKinds))
	for _, kind := range keyKinds {
		names = append(names, kind.name)
	}
	return names
}

// Generate has the token make a key pair that signs and never leaves it. There
// must be none yet with its label or its id. A key without an id gets a random
// one, so that its halves always belong together; the whole KeyID is returned.
func (c *Ceremony) Generate(keyType string) (crypto.Signer, KeyID, error) {
	id := c.config.Key
	if err := c.requireFree(id); err != nil {
		return nil, id, err
	}
	if len(id.ID) == 0 {
		id.ID = make([]byte, 8)
		if _, err := rand.Read(id.ID); err != nil {
			return nil, id, fmt.Errorf("random key id: %w", err)
		}
	}
	public, private, err := keyAttributes(id)
	if err != nil {
		return nil, id, err
	}
	signer, err := c.generate(keyType, public, private)
	if err != nil {
		return nil, id, unavailable(err, "make the %s of type %s", id, keyType)
	}
	return signer, id, nil
}

func (c *Ceremony) generate(keyType string, public, private crypto11.AttributeSet) (crypto.Signer, error) {
	for _, kind := range keyKinds {
		switch {
		case kind.name != keyType:
		case kind.curve != nil:
			return c.ctx.GenerateECDSAKeyPairWithAttributes(public, private, kind.curve)
		default:
			return c.ctx.GenerateRSAKeyPairWithAttributes(public, private, kind.bits)
		}
	}
	return nil, fmt.Errorf("%q is not a key type; choose from %v", keyType, KeyTypes())
}

// requireFree refuses a label or an id that a key in the token has already: crypto11
// would duplicate it silently.
func (c *Ceremony) requireFree(id KeyID) error {
	byLabel, byID := []crypto11.PrivateKey(nil), []crypto11.PrivateKey(nil)
	var err error
	if id.Label != "" {
		byLabel, err = c.ctx.FindPrivateKeys(nil, []byte(id.Label))
	}
	if err == nil && len(id.ID) > 0 {
		byID, err = c.ctx.FindPrivateKeys(id.ID, nil)
	}
	switch {
	case err != nil:
		return unavailable(err, "look for the %s", id)
	case len(byLabel) > 0:
		return faultf(ErrKey, "the %s holds a key labelled %q already; nothing was made. Choose another CA_KEY_LABEL, or use that key", c.config.Token, id.Label)
	case len(byID) > 0:
		return faultf(ErrKey, "the %s holds a key with id %x already; nothing was made. Choose another CA_KEY_ID, or use that key", c.config.Token, id.ID)
	}
	return nil
}

// keyAttributes says outright what crypto11 and some tokens would leave open or too wide.
func keyAttributes(id KeyID) (public, private crypto11.AttributeSet, err error) {
	public = crypto11.NewAttributeSet()
	private = crypto11.NewAttributeSet()
	set := func(a crypto11.AttributeSet, kind crypto11.AttributeType, value any) {
		if err == nil {
			err = a.Set(kind, value)
		}
	}
	for _, a := range []crypto11.AttributeSet{public, private} {
		set(a, pkcs11.CKA_TOKEN, true)
		set(a, pkcs11.CKA_ID, bytes.Clone(id.ID))
		if id.Label != "" {
			set(a, pkcs11.CKA_LABEL, id.Label)
		}
	}
	set(public, pkcs11.CKA_VERIFY, true)
	set(public, pkcs11.CKA_ENCRYPT, false)
	set(public, pkcs11.CKA_WRAP, false)
	set(private, pkcs11.CKA_PRIVATE, true)
	set(private, pkcs11.CKA_SENSITIVE, true)
	set(private, pkcs11.CKA_EXTRACTABLE, false)
	set(private, pkcs11.CKA_SIGN, true)
	set(private, pkcs11.CKA_DECRYPT, false)
	set(private, pkcs11.CKA_UNWRAP, false)
	set(private, pkcs11.CKA_DERIVE, false)
	return public, private, err
}

// Close logs out and unloads the module.
func (c *Ceremony) Close() error { return c.ctx.Close() }
