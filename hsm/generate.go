//go:build cgo

package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/eclipse-keypont/crypto11"
	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/ckr"
	"hsm-signer/hsm/cryptoki"
)

// generate asks the token for a key that can only sign. If the token rejects the template, generate
// asks again and leaves it to the token whether the key decrypts: tpm2-pkcs11 takes "does not
// decrypt" for "does not sign", and returns CKR_GENERAL_ERROR.
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

// refusesTemplate reports whether the token may have rejected the attributes of the key.
func refusesTemplate(err error) bool {
	for _, code := range []uint{
		pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_TEMPLATE_INCONSISTENT,
		pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID,
	} {
		if ckr.Is(err, code) {
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

// throughCrypto11 hands the module to crypto11, which initialises and finalises it itself, and then
// takes it back. The PIN is known to be right; crypto11 accepts a wrong one if an application is
// already logged in.
func (c *Ceremony) throughCrypto11(ctx context.Context, do func(*crypto11.Context) error) error {
	slot := int(c.conn.Slot())
	pin, err := c.config.PIN()
	if err != nil {
		return err
	}
	if !c.Close() {
		return faultf(ErrUnavailable, "a call hangs in the PKCS#11 module %s, so no key can be "+
			"created now", c.config.Module)
	}
	module, err := crypto11.Configure(&crypto11.Config{Path: c.config.Module, SlotNumber: &slot,
		Pin: string(pin)})
	switch {
	case ckr.IsPIN(err):
		return cryptoki.LoginFault(pin, c.config.Token, err) // it is not tried again
	case err != nil:
		return errors.Join(err, c.open(ctx))
	}
	err = waitFor(ctx, func() error { return errors.Join(do(module), module.Close()) })
	if errors.Is(err, errInterrupted) {
		return err
	}
	if again := c.open(ctx); again != nil {
		return &madeError{made: err == nil, cause: errors.Join(err, again)}
	}
	return err
}

// errInterrupted is the error of a key generation that was not waited for.
var errInterrupted = errors.New("interrupted while the token was creating the key, which it may " +
	"still finish: look for the key with the token's own tool before you try again")

// waitFor waits until the function returns or the context ends. There is no other bound: crypto11
// takes no context, and a token may need minutes for an RSA key.
func waitFor(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errInterrupted
	}
}

// A madeError says that the token could not be reached again after it was asked for a key.
type madeError struct {
	made  bool
	cause error
}

// Error says whether the key exists.
func (e *madeError) Error() string {
	if e.made {
		return fmt.Sprintf("the key was created, but the token can no longer be reached: %v. "+
			"Continue with that key: --use-existing-key", e.cause)
	}
	return fmt.Sprintf("the token can no longer be reached: %v", e.cause)
}

// Unwrap returns the fault.
func (e *madeError) Unwrap() error { return e.cause }

// templates are the attributes of a new key pair.
type templates struct{ public, private crypto11.AttributeSet }

// newTemplates sets every attribute that crypto11 and some tokens would leave unset or too wide.
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

// edwards25519 is the curve's name as CKA_EC_PARAMS: a PrintableString (PKCS#11 v3.0, section
// 2.3.10).
var edwards25519 = []byte("\x13\x0cedwards25519")

// generateEd25519 creates the key with the binding: crypto11 does not support Ed25519.
func (c *Ceremony) generateEd25519(ctx context.Context, t templates) error {
	public := append(t.public.ToSlice(),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, ckkECEdwards),
		pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, edwards25519))
	private := append(t.private.ToSlice(), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, ckkECEdwards))
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(ckmECEdwardsKeyPairGen, nil)}
	return c.user.Do(ctx, "C_GenerateKeyPair", func(m *pkcs11.Ctx) error {
		session, err := m.OpenSession(c.conn.Slot(),
			pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return err
		}
		_, _, err = m.GenerateKeyPair(session, mechanism, public, private)
		return errors.Join(err, m.CloseSession(session))
	})
}
