//go:build cgo

package hsm

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/ckr"
	"hsm-signer/hsm/cryptoki"
)

// A Ceremony creates a key in a token, or looks one up, once, for a person. The running service
// never uses it. It adds at most one key, and changes and deletes nothing.
type Ceremony struct {
	config Config
	user   *cryptoki.User // of the module
	conn   *connection    // nil: closed
}

// OpenCeremony logs in to the token for a ceremony. Close it at the end.
func OpenCeremony(ctx context.Context, c Config) (*Ceremony, error) {
	ceremony := &Ceremony{config: c.withDefaults(nil)}
	if err := ceremony.open(ctx); err != nil {
		return nil, err
	}
	return ceremony, nil
}

func (c *Ceremony) open(ctx context.Context) (err error) {
	c.user = cryptoki.NewUser(c.config.module(), &cryptoki.Counts{})
	if err = c.user.Load(ctx); err != nil {
		return err
	}
	if c.conn, err = connect(ctx, c.user); err != nil {
		c.user.Leave(ctx)
	}
	return err
}

// Close closes the sessions and unloads the module, and reports whether it could: while a call
// hangs in the module it cannot.
func (c *Ceremony) Close() bool {
	if c.conn == nil {
		return true
	}
	c.conn.Close()
	c.conn = nil
	return c.user.Leave(context.Background())
}

// Token describes the token of the ceremony.
func (c *Ceremony) Token() Token { return c.conn.Token() }

// Generate creates a key pair in the token that signs and never leaves it. No key may have its
// label or its id yet. A key without an id gets a random one, so that its halves always belong
// together.
func (c *Ceremony) Generate(ctx context.Context, keyType string) (KeyPair, error) {
	kind, err := kindNamed(keyType)
	if err != nil {
		return KeyPair{}, err
	}
	id := c.config.Key
	if err := c.requireFree(ctx, id); err != nil {
		return KeyPair{}, err
	}
	if len(id.ID) == 0 {
		id.ID = make([]byte, 8)
		if _, err := rand.Read(id.ID); err != nil {
			return KeyPair{}, fmt.Errorf("random key id: %w", err)
		}
	}
	err = c.generate(ctx, kind, id)
	if made := (*madeError)(nil); errors.As(err, &made) || errors.Is(err, errInterrupted) ||
		errors.Is(err, ErrPIN) {
		return KeyPair{}, fmt.Errorf("the %s: %w", id, err)
	}
	if err != nil {
		return KeyPair{}, c.halfMade(ctx, notMade(err, id, keyType), id)
	}
	pair, err := c.lookUp(ctx, id, nil)
	if err != nil {
		return KeyPair{}, fmt.Errorf("the private %s was created, but cannot be used: %w", id, err)
	}
	return pair, nil
}

// notMade returns the error for a token that did not create the key, with what to do.
func notMade(err error, id KeyID, keyType string) error {
	for _, code := range []uint{pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_KEY_SIZE_RANGE,
		pkcs11.CKR_DOMAIN_PARAMS_INVALID, pkcs11.CKR_CURVE_NOT_SUPPORTED} {
		if ckr.Is(err, code) {
			return &fault{Kind: ErrKey, Cause: err, Text: fmt.Sprintf("the token does not "+
				"support keys of type %s: choose another --key-type (%v)", keyType, err)}
		}
	}
	if refusesTemplate(err) {
		return &fault{Kind: ErrKey, Cause: err, Text: fmt.Sprintf("the token did not create the "+
			"%s of type %s: %s. Choose another --key-type, or create the key with the token's "+
			"own tool, not extractable, and certify it with --use-existing-key",
			id, keyType, ckr.Explain(err))}
	}
	return unavailable(err, "create the %s of type %s", id, keyType)
}

// halfMade adds to the error whether the token kept a part of the key.
func (c *Ceremony) halfMade(ctx context.Context, err error, id KeyID) error {
	if c.conn == nil {
		return err
	}
	if held, _ := c.holds(ctx, true, pkcs11.NewAttribute(pkcs11.CKA_ID, id.ID)); held {
		return fmt.Errorf("%w. The token now holds an unused %s: delete it with the "+
			"token's own tool", err, id)
	}
	return err
}

func kindNamed(keyType string) (keyKind, error) {
	for _, kind := range keyKinds {
		if kind.name == keyType {
			return kind, nil
		}
	}
	return keyKind{}, fmt.Errorf("%q is not a key type; choose from %v", keyType, KeyTypes())
}

// requireFree returns an error if a key in the token has the label or the id already: tokens
// duplicate both silently.
func (c *Ceremony) requireFree(ctx context.Context, id KeyID) error {
	labelled, err := c.holds(ctx, id.Label != "", pkcs11.NewAttribute(pkcs11.CKA_LABEL, id.Label))
	if err != nil {
		return unavailable(err, "look for the %s", id)
	}
	numbered, err := c.holds(ctx, len(id.ID) > 0, pkcs11.NewAttribute(pkcs11.CKA_ID, id.ID))
	switch {
	case err != nil:
		return unavailable(err, "look for the %s", id)
	case labelled:
		return faultf(ErrKey, "the %s already holds a key labelled %q; nothing was created. "+
			"Choose another CA_KEY_LABEL, or certify that key with --use-existing-key",
			c.config.Token, id.Label)
	case numbered:
		return faultf(ErrKey, "the %s already holds a key with id %x; nothing was created. "+
			"Choose another CA_KEY_ID, or certify that key with --use-existing-key",
			c.config.Token, id.ID)
	}
	return nil
}

// holds reports whether the token holds a key, or half of one, with the attribute.
func (c *Ceremony) holds(ctx context.Context, asked bool,
	attribute *pkcs11.Attribute) (bool, error) {
	if !asked {
		return false, nil
	}
	for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY} {
		found, err := c.conn.Find(ctx,
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), attribute})
		if err != nil || len(found) > 0 {
			return len(found) > 0, err
		}
	}
	return false, nil
}

// Existing looks up the one key that the configuration names. If the token has no public half,
// Existing takes the known one, unless it is nil.
func (c *Ceremony) Existing(ctx context.Context, known crypto.PublicKey) (KeyPair, error) {
	return c.lookUp(ctx, c.config.Key, known)
}
