package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/eclipse-keypont/crypto11"
	"github.com/miekg/pkcs11"
)

// generate asks for a key that can do nothing but sign. A token that has no such keys is asked once
// more, for one of which it is left open whether it decrypts: tpm2-pkcs11 takes "does not
// decrypt" for "does not sign", and answers CKR_GENERAL_ERROR.
func (c *Ceremony) generate(ctx context.Context, kind keyKind, id KeyID) error {
	narrow, err := newTemplates(id)
	if err != nil {
		return err
	}
	err = c.generateFrom(ctx, kind, narrow)
	if !refusesTemplate(err) || c.conn == nil || c.requireFree(ctx, id) != nil {
		return err
	}
	wide, again := newTemplates(id)
	if again != nil {
		return again
	}
	wide.public.Unset(pkcs11.CKA_ENCRYPT)
	wide.private.Unset(pkcs11.CKA_DECRYPT)
	return c.generateFrom(ctx, kind, wide)
}

// refusesTemplate reports whether the token may have made no key for what was asked of it.
func refusesTemplate(err error) bool {
	for _, code := range []uint{
		pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID,
	} {
		if is(err, code) {
			return true
		}
	}
	return false
}

func (c *Ceremony) generateFrom(ctx context.Context, kind keyKind, t templates) error {
	switch {
	case kind.curve != nil:
		return c.throughCrypto11(ctx, func(module *crypto11.Context) error {
			_, err := module.GenerateECDSAKeyPairWithAttributes(t.public, t.private, kind.curve)
			return err
		})
	case kind.bits > 0:
		return c.throughCrypto11(ctx, func(module *crypto11.Context) error {
			_, err := module.GenerateRSAKeyPairWithAttributes(t.public, t.private, kind.bits)
			return err
		})
	}
	return c.generateEd25519(ctx, t)
}

// throughCrypto11 lets crypto11 have the module meanwhile: it initialises and finalises it
// itself. The PIN is known to be right; crypto11 would take a wrong one for right where an
// application is logged in already.
func (c *Ceremony) throughCrypto11(ctx context.Context, do func(*crypto11.Context) error) error {
	slot := int(c.conn.slot)
	pin, err := c.config.PIN()
	if err != nil {
		return err
	}
	if !c.Close() {
		return faultf(ErrUnavailable, "a call hangs in the PKCS#11 module %s, so crypto11 cannot use the module", c.config.Module)
	}
	module, err := crypto11.Configure(&crypto11.Config{Path: c.config.Module, SlotNumber: &slot, Pin: string(pin)})
	switch {
	case isPIN(err):
		return loginFault(pin, c.config.Token, err) // and no other try
	case err != nil:
		return errors.Join(err, c.open(ctx))
	}
	err = waitFor(ctx, func() error { return errors.Join(do(module), module.Close()) })
	if errors.Is(err, errNotWaitedFor) {
		return err
	}
	if again := c.open(ctx); again != nil {
		return &madeError{made: err == nil, cause: errors.Join(err, again)}
	}
	return err
}

// errNotWaitedFor means that the token may still make the key.
var errNotWaitedFor = errors.New("interrupted while the token was working, so it may still make the key: look for it with the token's own tool before you try again")

// waitFor waits until the function returns or the context ends. crypto11 takes no context, and RSA keys
// may take a token minutes, so there is no other bound.
func waitFor(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errNotWaitedFor
	}
}

// madeError says that the token could not be reached again after it was asked for a key.
type madeError struct {
	made  bool
	cause error
}

// Error says whether there is a key.
func (e *madeError) Error() string {
	if e.made {
		return fmt.Sprintf("the key was made, but the token cannot be reached any more: %v. Go on with that key: --use-existing-key", e.cause)
	}
	return fmt.Sprintf("the token cannot be reached any more: %v", e.cause)
}

// Unwrap returns the fault.
func (e *madeError) Unwrap() error { return e.cause }

// templates say what a key pair is to be.
type templates struct{ public, private crypto11.AttributeSet }

// newTemplates sets every attribute that crypto11 and some tokens would leave open or too wide.
func newTemplates(id KeyID) (templates, error) {
	t := templates{crypto11.NewAttributeSet(), crypto11.NewAttributeSet()}
	var err error
	set := func(a crypto11.AttributeSet, kind crypto11.AttributeType, value any) {
		if err == nil {
			err = a.Set(kind, value)
		}
	}
	for _, a := range []crypto11.AttributeSet{t.public, t.private} {
		set(a, pkcs11.CKA_TOKEN, true)
		set(a, pkcs11.CKA_ID, bytes.Clone(id.ID))
		if id.Label != "" {
			set(a, pkcs11.CKA_LABEL, id.Label)
		}
	}
	set(t.public, pkcs11.CKA_VERIFY, true)
	set(t.public, pkcs11.CKA_ENCRYPT, false)
	set(t.public, pkcs11.CKA_WRAP, false)
	set(t.private, pkcs11.CKA_PRIVATE, true)
	set(t.private, pkcs11.CKA_SENSITIVE, true)
	set(t.private, pkcs11.CKA_EXTRACTABLE, false)
	set(t.private, pkcs11.CKA_SIGN, true)
	set(t.private, pkcs11.CKA_DECRYPT, false)
	set(t.private, pkcs11.CKA_UNWRAP, false)
	set(t.private, pkcs11.CKA_DERIVE, false)
	return t, err
}

// What PKCS#11 v3.0, section 2.3, adds for keys on Edwards curves; the binding is of v2.40.
const (
	ckkECEdwards           = 0x40
	ckmECEdwardsKeyPairGen = 0x1055
)

// edwards25519 is the curve's name as CKA_EC_PARAMS: a PrintableString (PKCS#11 v3.0, section 2.3.10).
var edwards25519 = []byte("\x13\x0cedwards25519")

// generateEd25519 makes the key with the binding: crypto11 does not know Ed25519.
func (c *Ceremony) generateEd25519(ctx context.Context, t templates) error {
	public := append(t.public.ToSlice(),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, ckkECEdwards),
		pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, edwards25519))
	private := append(t.private.ToSlice(), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, ckkECEdwards))
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(ckmECEdwardsKeyPairGen, nil)}
	return c.library.do(ctx, c.config.Timeout, "C_GenerateKeyPair", func() error {
		m := c.library.module
		session, err := m.OpenSession(c.conn.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return err
		}
		_, _, err = m.GenerateKeyPair(session, mechanism, public, private)
		return errors.Join(err, m.CloseSession(session))
	})
}
