package tokens_test

import (
	"context"
	"crypto"
	"errors"
	"slices"
	"testing"

	"hsm-signer/hsm"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/tokens"
)

// Each test signature is recorded before it is made. If it cannot be recorded it is not made: then
// the key is available, and signs nothing.
func TestTestSignaturesAreAnnounced(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		public := generateRSA(t, token, "ca")
		s := behind(t, token)
		c := config(token, "ca")
		c.Module = s.Module
		refused := errors.New("the journal is full")
		var announced []hsm.ProbeTime
		var before []int // signatures, when a test signature was announced
		c.BeforeProbe = func(_ context.Context, when hsm.ProbeTime) error {
			announced, before = append(announced, when), append(before,
				calls(t, s).Count(pkcs11shim.SignInit))
			return refused
		}
		key := newKey(t, c, public)
		sign := func() error {
			_, err := key.Signer(t.Context()).Sign(nil, make([]byte, crypto.SHA256.Size()),
				crypto.SHA256)
			return err
		}
		for name, err := range map[string]error{"ready": key.Ready(t.Context()),
			"look": key.Healthy(t.Context()), "sign": sign()} {
			if !errors.Is(err, hsm.ErrUnproven) || errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n := calls(t, s).Count(pkcs11shim.SignInit); n != 0 ||
			calls(t, s).Count(pkcs11shim.Login) != 1 {
			t.Errorf("%d signatures, although none could be recorded:\n%s", n, calls(t, s))
		}
		refused, announced, before = nil, nil, nil
		must.OK(t, sign())
		if n := calls(t, s).Count(pkcs11shim.SignInit); n != 2 ||
			!slices.Equal(announced, []hsm.ProbeTime{hsm.ProbeReady}) ||
			!slices.Equal(before, []int{0}) {
			t.Errorf("%d signatures; announced were %v, before which there were %v", n, announced,
				before)
		}
		for range 20 { // a poller gets no signature
			must.OK(t, key.Healthy(t.Context()))
		}
		if n := calls(t, s).Count(pkcs11shim.SignInit); n != 2 {
			t.Errorf("%d signatures", n)
		}
	})
}
