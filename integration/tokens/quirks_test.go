package tokens_test

import (
	"crypto"
	"errors"
	"reflect"
	"strings"
	"testing"

	"hsm-signer/hsm"
	"hsm-signer/hsm/pkcs11uri"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/tokens"
)

// quirky returns a new SoftHSM token with a key, behind a shim.
func quirky(t *testing.T, keyType string) (*pkcs11shim.Shim, hsm.Config, crypto.PublicKey) {
	t.Helper()
	token := fresh(t, tokens.Kind{Name: "softhsm", New: tokens.NewSoftHSM})
	c := config(token, "ca")
	pair := hold(t, c,
		func(c *hsm.Ceremony) (hsm.KeyPair, error) { return c.Generate(t.Context(), keyType) })
	s := behind(t, token)
	c.Module, c.Key = s.Module, pair.ID
	return s, c, pair.Public
}

// requireUnder requires that the rule took effect.
func requireUnder(t *testing.T, s *pkcs11shim.Shim, rule pkcs11shim.Rule) {
	t.Helper()
	if len(calls(t, s).Under(rule)) == 0 {
		t.Errorf("%s did not take effect:\n%s", rule, calls(t, s))
	}
}

// Some modules pad a token's texts with NULs, and p11tool writes these into its URIs.
func TestTextsThatEndWithNUL(t *testing.T) {
	s, c, public := quirky(t, "ecdsa-p256")
	for _, rule := range []pkcs11shim.Rule{pkcs11shim.PadWithNUL(), pkcs11shim.PadWithRubbish()} {
		must.OK(t, s.Rules(rule))
		for _, padding := range []string{"", "%00%00", "%20%20", "%00%23%23"} {
			uri := must.Get(pkcs11uri.Parse("pkcs11:model=SoftHSM%20v2" + padding + ";token=" +
				c.Token.Label + padding))(t)
			c.Token = hsm.TokenID{Label: uri.Token, Model: uri.Model}
			must.OK(t, newKey(t, c, public).Ready(t.Context()))
		}
		requireUnder(t, s, rule)
	}
}

// A signature in the wrong form is reported as such, and not as another key's.
func TestSignaturesInTheWrongForm(t *testing.T) {
	for _, q := range []struct {
		keyType, says string
		rule          pkcs11shim.Rule
	}{
		{"ecdsa-p256", "it is in DER (7", pkcs11shim.SignInDER()},
		{"ecdsa-p384", "it is in DER (10", pkcs11shim.SignInDER()},
		{"ecdsa-p521", "it is in DER (13", pkcs11shim.SignInDER()},
		{"ecdsa-p256", "it has 63 bytes, and PKCS#11 requires 64", pkcs11shim.SignShort()},
		{"rsa-2048", "it has 255 bytes, and PKCS#11 requires 256", pkcs11shim.SignShort()},
		{"ed25519", "it has 63 bytes, and PKCS#11 requires 64", pkcs11shim.SignShort()},
	} {
		s, c, public := quirky(t, q.keyType)
		must.OK(t, s.Rules(q.rule))
		key := newKey(t, c, public)
		steps := hsm.Check(t.Context(), c, public, hsm.CheckOptions{})
		for _, err := range []error{key.Ready(t.Context()), steps[len(steps)-1].Err} {
			if !errors.Is(err, hsm.ErrKey) || !strings.Contains(err.Error(), q.says) ||
				strings.Contains(err.Error(), "is not the key of") {
				t.Errorf("%s, %s: %v; want %q", q.keyType, q.rule, err, q.says)
			}
		}
		key.Close()
		requireUnder(t, s, q.rule)
	}
}

// A single signature in the wrong form causes another try: some modules drop leading zeros.
func TestOneSignatureInTheWrongForm(t *testing.T) {
	s, c, public := quirky(t, "ecdsa-p256")
	key := newKey(t, c, public)
	must.OK(t, key.Ready(t.Context()))
	must.OK(t, errors.Join(s.Rules(pkcs11shim.SignShort().Times(2)), s.Forget()))
	requireSignatures(t, key, public)
	requireUnder(t, s, pkcs11shim.SignShort())
	if n := calls(t, s).Count(pkcs11shim.Login); n != 0 {
		t.Errorf("it cost %d logins", n)
	}
}

// A public key is readable in each encoding of its point that modules use.
func TestPointsOfModules(t *testing.T) {
	for _, keyType := range []string{"ed25519", "ecdsa-p256", "ecdsa-p521"} {
		s, c, public := quirky(t, keyType)
		for _, rule := range []pkcs11shim.Rule{pkcs11shim.BarePoint(), pkcs11shim.PointInBits()} {
			must.OK(t, s.Rules(rule))
			pair := hold(t, c,
				func(c *hsm.Ceremony) (hsm.KeyPair, error) { return c.Existing(t.Context(), nil) })
			if !reflect.DeepEqual(pair.Public, public) {
				t.Errorf("%s, %s: read %v", keyType, rule, pair.Public)
			}
			requireUnder(t, s, rule)
		}
	}
}
