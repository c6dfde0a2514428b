package tokens_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/testenv"
	"hsm-signer/integration/tokens"
)

// A pair is two keys that one process has at a time, behind one shim: on one token or on two.
type pair struct {
	t       *testing.T
	shim    *pkcs11shim.Shim
	configs [2]hsm.Config
	public  [2]crypto.PublicKey
	keys    [2]*hsm.Key
}

// newPair makes a key on a token of SoftHSM, and another on the same or on a second token.
func newPair(t *testing.T, twoTokens bool) *pair {
	t.Helper()
	token := fresh(t, tokens.Kind{Name: "softhsm", New: tokens.NewSoftHSM})
	p := &pair{t: t}
	p.configs = [2]hsm.Config{config(token, "first"), config(token, "second")}
	if twoTokens {
		addToken(t, "two", token.PIN)
		p.configs[1].Token = hsm.TokenID{Label: "two"}
	}
	for n, keyType := range []string{"ecdsa-p256", "rsa-2048"} {
		made := hold(t, p.configs[n], func(c *hsm.Ceremony) (hsm.KeyPair, error) {
			return c.Generate(t.Context(), keyType)
		})
		p.public[n] = made.Public
	}
	p.shim = behind(t, token)
	for n := range p.keys {
		p.configs[n].Module = p.shim.Module
		p.keys[n] = newKey(t, p.configs[n], p.public[n])
	}
	return p
}

// addToken makes a second token of SoftHSM.
func addToken(t *testing.T, label, pin string) {
	t.Helper()
	must.Get(testenv.Output(t.Context(), "", nil, "softhsm2-util", "--init-token", "--free",
		"--label", label, "--pin", pin, "--so-pin", "12345678"))(t)
}

// ready requires that both keys can sign.
func (p *pair) ready() {
	p.t.Helper()
	for _, key := range p.keys {
		must.OK(p.t, key.Ready(p.t.Context()))
	}
}

// sign has a key make a signature, which must verify.
func (p *pair) sign(n int) error {
	digest := sha256.Sum256([]byte("pair"))
	signature, err := p.keys[n].Signer(p.t.Context()).Sign(nil, digest[:], crypto.SHA256)
	if err == nil && !verifies(p.public[n], digest[:], signature) {
		p.t.Errorf("key %d made a signature that does not verify", n)
	}
	return err
}

// eachWay runs a test with both keys on one token, and each on its own.
func eachWay(t *testing.T, test func(*testing.T, *pair)) {
	for name, two := range map[string]bool{"one token": false, "two tokens": true} {
		t.Run(name, func(t *testing.T) { test(t, newPair(t, two)) })
	}
}

// Two keys initialise the module once. When one is closed the other still signs, and the last one
// finalises the module.
func TestTwoKeysShareTheModule(t *testing.T) {
	eachWay(t, func(t *testing.T, p *pair) {
		p.ready()
		if all := calls(t, p.shim); all.Count(pkcs11shim.Initialize) != 1 ||
			all.Count(pkcs11shim.Login) != 2 {
			t.Errorf("two keys took\n%s", all)
		}
		p.keys[0].Close()
		must.OK(t, p.sign(1))
		if n := calls(t, p.shim).Count(pkcs11shim.Finalize); n != 0 {
			t.Errorf("%d calls of C_Finalize with a key open", n)
		}
		p.keys[1].Close()
		if n := calls(t, p.shim).Count(pkcs11shim.Finalize); n != 1 {
			t.Errorf("%d calls of C_Finalize with no key open", n)
		}
	})
}

// Whatever a fault takes from both keys, and whichever of them meets it first, both come back, and
// every signature of either verifies.
func TestTwoKeysComeBackTogether(t *testing.T) {
	eachWay(t, func(t *testing.T, p *pair) {
		for _, rule := range []pkcs11shim.Rule{
			pkcs11shim.LoseSessions(pkcs11shim.SignInit),
			pkcs11shim.CloseSessions(pkcs11shim.SignInit),
			pkcs11shim.LoseSessions(pkcs11shim.Sign),
			pkcs11shim.Fail(pkcs11shim.SignInit, pkcs11.CKR_DEVICE_ERROR).Times(3),
			pkcs11shim.Fail(pkcs11shim.Sign, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED).Times(4),
			pkcs11shim.Fail(pkcs11shim.OpenSession, pkcs11.CKR_DEVICE_REMOVED).Times(2),
		} {
			for first := range p.keys {
				p.ready()
				must.OK(t, errors.Join(p.shim.Forget(), p.shim.Rules(rule)))
				for range 4 {
					must.OK(t, errors.Join(p.sign(first), p.sign(1-first)))
				}
			}
		}
	})
}

// The same under load: a signature may fail while the module is initialised again, and the next
// try gets it.
func TestTwoKeysUnderLoad(t *testing.T) {
	eachWay(t, func(t *testing.T, p *pair) {
		p.ready()
		ctx, stop := context.WithCancel(t.Context())
		var group sync.WaitGroup
		var signed [2]atomic.Int64
		for n := range p.keys {
			for range 3 {
				group.Go(func() {
					for ctx.Err() == nil {
						if p.sign(n) == nil {
							signed[n].Add(1)
						}
					}
				})
			}
		}
		// more signs until each key has made so many signatures more.
		more := func(want int64) {
			for n := range signed {
				for before := signed[n].Load(); signed[n].Load() < before+want; {
					if t.Context().Err() != nil {
						t.Fatal("a key does not sign")
					}
				}
			}
		}
		for _, rule := range []pkcs11shim.Rule{
			pkcs11shim.LoseSessions(pkcs11shim.SignInit),
			pkcs11shim.CloseSessions(pkcs11shim.Sign),
			pkcs11shim.Fail(pkcs11shim.Sign, pkcs11.CKR_DEVICE_ERROR).Times(20),
			pkcs11shim.Fail(pkcs11shim.SignInit, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED).Times(20),
		} {
			must.OK(t, errors.Join(p.shim.Forget(), p.shim.Rules(rule)))
			more(20)
			requireUnder(t, p.shim, rule)
		}
		stop()
		group.Wait()
	})
}

// A PIN that the token has rejected is not tried for the other key.
func TestWrongPINOfTwoKeys(t *testing.T) {
	p := newPair(t, false)
	for n := range p.keys {
		p.configs[n].PIN = hsm.PIN("wrong-1").Fixed()
		key := newKey(t, p.configs[n], p.public[n])
		for range 3 {
			if err := key.Ready(t.Context()); !errors.Is(err, hsm.ErrPIN) {
				t.Errorf("key %d: %v", n, err)
			}
		}
	}
	if all := calls(t, p.shim); all.Count(pkcs11shim.Login) != 1 {
		t.Errorf("a wrong PIN was tried %d times\n%s", all.Count(pkcs11shim.Login), all)
	}
}

// A key or a token that is missing does not have the module initialised again while another key is
// connected.
func TestOneKeyIsMissing(t *testing.T) {
	p := newPair(t, true)
	p.ready()
	for want, change := range map[error]func(*hsm.Config){
		hsm.ErrKey:         func(c *hsm.Config) { c.Key.Label = "absent" },
		hsm.ErrUnavailable: func(c *hsm.Config) { c.Token.Label = "absent" },
	} {
		absent := p.configs[0]
		change(&absent)
		none := newKey(t, absent, p.public[1])
		for range 3 {
			if err := none.Ready(t.Context()); !errors.Is(err, want) {
				t.Errorf("%v; want %v", err, want)
			}
			must.OK(t, errors.Join(p.sign(0), p.sign(1)))
		}
	}
	if all := calls(t, p.shim); all.Count(pkcs11shim.Finalize) != 0 {
		t.Errorf("the module was initialised again:\n%s", all)
	}
}

// A key that is closed and opened again, as often as you like, does not disturb the other: each of
// its signatures is made at the first try.
func TestOneKeyComesAndGoes(t *testing.T) {
	eachWay(t, func(t *testing.T, p *pair) {
		p.ready()
		ctx, stop := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for range 3 {
			group.Go(func() {
				for ctx.Err() == nil {
					must.OK(t, p.sign(0))
				}
			})
		}
		for range 10 {
			p.keys[1].Close()
			p.keys[1] = newKey(t, p.configs[1], p.public[1])
			must.OK(t, p.sign(1))
		}
		stop()
		group.Wait()
		if all := calls(t, p.shim); all.Count(pkcs11shim.Finalize) != 0 ||
			p.keys[0].Stats().Connections != 1 {
			t.Errorf("%d calls of C_Finalize, and %d connections of the other key",
				all.Count(pkcs11shim.Finalize), p.keys[0].Stats().Connections)
		}
	})
}
