package tokens_test

import (
	"crypto"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/tokens"
)

// behind puts a shim before the token, which the product loads instead.
func behind(t *testing.T, token *tokens.Token) *pkcs11shim.Shim {
	t.Helper()
	s := must.Get(pkcs11shim.New(t.Context(), t.TempDir(), token.Module))(t)
	must.Setenv(t, s.Env()...)
	return s
}

func newKey(t *testing.T, config hsm.Config, public crypto.PublicKey) *hsm.Key {
	t.Helper()
	key := must.Get(hsm.NewKey(config, public))(t)
	t.Cleanup(key.Close)
	return key
}

func calls(t *testing.T, s *pkcs11shim.Shim) pkcs11shim.Calls {
	t.Helper()
	return must.Get(s.Calls())(t)
}

// The ceremony creates a key of each type that the token supports. The key signs, and cannot leave
// the token. If the token does not accept CKA_DECRYPT the key may decrypt too, and the ceremony
// reports that.
func TestCeremony(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		for _, keyType := range token.Can.KeyTypes {
			c := config(token, "ca")
			c.Key = hsm.KeyID{Label: "ceremony-" + keyType}
			made := hold(t, c,
				func(c *hsm.Ceremony) (hsm.KeyPair,
					error) {
					return c.Generate(t.Context(), keyType)
				})
			found := hold(t, c,
				func(c *hsm.Ceremony) (hsm.KeyPair, error) { return c.Existing(t.Context(), nil) })
			if made.Type != keyType || !reflect.DeepEqual(made, found) {
				t.Errorf("made was %+v, and found %+v", made, found)
			}
			decrypts := made.Uses[slices.IndexFunc(made.Uses,
				func(a hsm.Attribute) bool { return a.Name == "CKA_DECRYPT" })]
			if decrypts.Is != slices.Contains(token.Can.Unsaid, pkcs11.CKA_DECRYPT) {
				t.Errorf("%s: may decrypt: %t", keyType, decrypts.Is)
			}
			c.Key = made.ID
			key := newKey(t, c, made.Public)
			requireProof(t, token, key)
			requireSignatures(t, key, made.Public)
			if s := key.Stats().Sessions; s.Open < 1 || s.Open > s.Most+1 || s.InUse != 0 {
				t.Errorf("%s: sessions: %+v", keyType, s)
			}
			key.Close()
			if s := key.Stats().Sessions; s != (hsm.Sessions{}) {
				t.Errorf("%s: closed, and sessions: %+v", keyType, s)
			}
		}
	})
}

// If the token does not support a type of key the ceremony reports that, and the key that exists
// anyway.
func TestCeremonyOfAKeyThatTheTokenCannotMake(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		for keyType := range token.Can.Refuses {
			ceremony, err := hsm.OpenCeremony(t.Context(), config(token, "refused-"+keyType))
			must.OK(t, err)
			_, err = ceremony.Generate(t.Context(), keyType)
			ceremony.Close()
			if err == nil || !strings.Contains(err.Error(), "hoose another --key-type") &&
				!strings.Contains(err.Error(), "The token now holds an unused key") {
				t.Errorf("%s: %v", keyType, err)
			}
		}
	})
}

// hold opens a ceremony for one action.
func hold(t *testing.T, c hsm.Config, do func(*hsm.Ceremony) (hsm.KeyPair, error)) hsm.KeyPair {
	t.Helper()
	ceremony := must.Get(hsm.OpenCeremony(t.Context(), c))(t)
	defer ceremony.Close()
	return must.Get(do(ceremony))(t)
}
