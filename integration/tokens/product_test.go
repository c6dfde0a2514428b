package tokens_test

import (
	"context"
	"crypto"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"k8s.io/apimachinery/pkg/util/wait"

	"hsm-signer/hsm"
	"hsm-signer/integration/shim"
	"hsm-signer/integration/tokens"
)

const (
	retryEvery = 100 * time.Millisecond
	retryFor   = time.Minute
)

// behind puts a shim before the token, for the product to load in its place.
func behind(t *testing.T, token *tokens.Token) *shim.Shim {
	t.Helper()
	s, err := shim.New(t.Context(), t.TempDir(), token.Module)
	must(t, err)
	for _, variable := range s.Env() {
		setenv(t, variable)
	}
	return s
}

func newKey(t *testing.T, config hsm.Config, public crypto.PublicKey) *hsm.Key {
	t.Helper()
	key, err := hsm.NewKey(config, public)
	must(t, err)
	t.Cleanup(key.Close)
	return key
}

func calls(t *testing.T, s *shim.Shim) shim.Calls {
	t.Helper()
	calls, err := s.Calls()
	must(t, err)
	return calls
}

// The ceremony makes a key of each type that the token has; it signs, and cannot leave. Where the
// token takes no word on decrypting, the key may decrypt too, and the ceremony says so.
func TestCeremony(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		for _, keyType := range token.Can.KeyTypes {
			c := config(token, "ca")
			c.Key = hsm.KeyID{Label: "ceremony-" + keyType}
			made := hold(t, c, func(c *hsm.Ceremony) (hsm.KeyPair, error) { return c.Generate(t.Context(), keyType) })
			found := hold(t, c, func(c *hsm.Ceremony) (hsm.KeyPair, error) { return c.Existing(t.Context(), nil) })
			if made.Type != keyType || !reflect.DeepEqual(made, found) {
				t.Errorf("made was %+v, and found %+v", made, found)
			}
			decrypts := made.Uses[slices.IndexFunc(made.Uses, func(a hsm.Attribute) bool { return a.Name == "CKA_DECRYPT" })]
			if decrypts.Is != slices.Contains(token.Can.Unsaid, pkcs11.CKA_DECRYPT) {
				t.Errorf("%s: may decrypt: %t", keyType, decrypts.Is)
			}
			c.Key = made.ID
			key := newKey(t, c, made.Public)
			requireProof(t, token, key)
			requireSignatures(t, key, made.Public)
			key.Close()
		}
	})
}

// A token that has no such keys says so, and what it made of one all the same.
func TestCeremonyOfAKeyThatTheTokenCannotMake(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		for keyType := range token.Can.Refuses {
			ceremony, err := hsm.OpenCeremony(t.Context(), config(token, "refused-"+keyType))
			must(t, err)
			_, err = ceremony.Generate(t.Context(), keyType)
			ceremony.Close()
			if err == nil || !strings.Contains(err.Error(), "hoose another --key-type") && !strings.Contains(err.Error(), "The token holds a key") {
				t.Errorf("%s: %v", keyType, err)
			}
		}
	})
}

// hold opens a ceremony for one thing.
func hold(t *testing.T, c hsm.Config, do func(*hsm.Ceremony) (hsm.KeyPair, error)) hsm.KeyPair {
	t.Helper()
	ceremony, err := hsm.OpenCeremony(t.Context(), c)
	must(t, err)
	defer ceremony.Close()
	pair, err := do(ceremony)
	must(t, err)
	return pair
}

// A key whose token lost its daemon signs again when the daemon is back.
func TestKeyOutlivesDaemon(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		if token.Can.Lost == nil {
			return
		}
		public := generateRSA(t, token, "ca")
		key := newKey(t, config(token, "ca"), public)
		requireSignatures(t, key, public)
		sign := func() error {
			_, err := key.Signer(t.Context()).Sign(nil, make([]byte, crypto.SHA256.Size()), crypto.SHA256)
			return err
		}
		must(t, token.Kill())
		if err := sign(); (err == nil) != (token.Can.Lost.Sign == pkcs11.CKR_OK) || err != nil && !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("without its daemon: %v", err)
		}
		must(t, token.Start(t.Context()))
		var last error
		err := wait.PollUntilContextTimeout(t.Context(), retryEvery, retryFor, true, func(context.Context) (bool, error) {
			last = sign()
			return last == nil, nil
		})
		if err != nil {
			t.Fatalf("with the daemon back for %s: %v", retryFor, last)
		}
		requireSignatures(t, key, public)
	})
}

// A key whose sessions and login were lost signs all the same, with one login more.
func TestKeyOutlivesSessions(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		public := generateRSA(t, token, "ca")
		s := behind(t, token)
		c := config(token, "ca")
		c.Module = s.Module
		key := newKey(t, c, public)
		requireSignatures(t, key, public)
		must(t, s.Forget())
		must(t, s.Rules(shim.CloseSessions(shim.SignInit)))
		requireSignatures(t, key, public)
		if n := calls(t, s).Count(shim.Login); n != 1 {
			t.Errorf("C_Login was called %d times:\n%s", n, calls(t, s))
		}
	})
}

// A wrong PIN is tried once, on every kind of token, and the right one works after it.
func TestKeyTriesWrongPINOnce(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		public := generateRSA(t, token, "ca")
		s := behind(t, token)
		c := config(token, "ca")
		c.Module, c.PIN = s.Module, hsm.PIN("00000000").Fixed()
		key := newKey(t, c, public)
		requireStays(t, key, hsm.ErrPIN)
		if n := calls(t, s).Count(shim.Login); n != 1 {
			t.Errorf("C_Login was called %d times:\n%s", n, calls(t, s))
		}
		key.Close()
		requireSignatures(t, newKey(t, config(token, "ca"), public), public)
	})
}

// requireStays requires that the key has that fault for longer than any first wait between attempts.
func requireStays(t *testing.T, key *hsm.Key, want error) {
	t.Helper()
	looks := 0
	must(t, wait.PollUntilContextTimeout(t.Context(), retryEvery, retryFor, true, func(ctx context.Context) (bool, error) {
		if err := key.Ready(ctx); !errors.Is(err, want) {
			t.Errorf("look %d: %v; want %v", looks, err, want)
		}
		looks++
		return looks == 12, nil
	}))
}

// A wrong PIN that the token takes long to refuse is a wrong PIN too: it is not tried again, neither
// while its answer is awaited nor after.
func TestKeyTriesWrongPINOnceThoughTheAnswerIsLate(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		public := generateRSA(t, token, "ca")
		s := behind(t, token)
		must(t, s.Rules(shim.Delay(shim.Login, 2*time.Second)))
		c := config(token, "ca")
		c.Module, c.PIN, c.Timeout = s.Module, hsm.PIN("00000000").Fixed(), time.Second
		key := newKey(t, c, public)
		must(t, wait.PollUntilContextTimeout(t.Context(), retryEvery, retryFor, true, func(ctx context.Context) (bool, error) {
			return errors.Is(key.Ready(ctx), hsm.ErrPIN), nil
		}))
		requireStays(t, key, hsm.ErrPIN)
		if n := calls(t, s).Count(shim.Login); n != 1 {
			t.Errorf("C_Login was called %d times:\n%s", n, calls(t, s))
		}
	})
}

// A refused PIN is tried again when its source has another, and not before.
func TestKeyTriesAnotherPIN(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		public := generateRSA(t, token, "ca")
		s := behind(t, token)
		pin := hsm.PIN("00000000")
		c := config(token, "ca")
		c.Module, c.PIN = s.Module, func() (hsm.PIN, error) { return pin, nil }
		key := newKey(t, c, public)
		for range 3 {
			if err := key.Ready(t.Context()); !errors.Is(err, hsm.ErrPIN) {
				t.Errorf("with a wrong PIN: %v", err)
			}
		}
		pin = hsm.PIN(token.PIN)
		requireSignatures(t, key, public)
		if n := calls(t, s).Count(shim.Login); n != 2 {
			t.Errorf("C_Login was called %d times, for two PINs:\n%s", n, calls(t, s))
		}
	})
}

// The PIN is changed on the token while the key is in use: what is logged in goes on. After a fault
// that costs the login the old PIN is tried once, and the new one when the source has it.
func TestPINChangedWhileInUse(t *testing.T) {
	const fresh = "86420864" // as long as every token takes
	forEach(t, func(t *testing.T, token *tokens.Token) {
		public := generateRSA(t, token, "ca")
		s := behind(t, token)
		pin := hsm.PIN(token.PIN)
		c := config(token, "ca")
		c.Module, c.PIN = s.Module, func() (hsm.PIN, error) { return pin, nil }
		key := newKey(t, c, public)
		requireSignatures(t, key, public)
		changePIN(t, token, fresh)
		requireSignatures(t, key, public)
		must(t, s.Rules(shim.CloseSessions(shim.SignInit)))
		if token.Can.KeepsLogin {
			requireSignatures(t, key, public) // there is nothing to log in to
			return
		}
		for range 3 {
			if _, err := key.Signer(t.Context()).Sign(nil, make([]byte, crypto.SHA256.Size()), crypto.SHA256); !errors.Is(err, hsm.ErrPIN) {
				t.Errorf("with the old PIN: %v", err)
			}
		}
		pin = fresh
		requireSignatures(t, key, public)
		if n := calls(t, s).Count(shim.Login); n != 3 {
			t.Errorf("C_Login was called %d times; want one with each PIN, and one at the start:\n%s", n, calls(t, s))
		}
	})
}

// changePIN sets another PIN in a session beside the product's. Of most modules there is one in a
// process, which the product has initialised and logged in to; p11-kit's each have another for each
// who loads them.
func changePIN(t *testing.T, token *tokens.Token, fresh string) {
	t.Helper()
	module := pkcs11.New(token.Module)
	defer module.Destroy()
	if err := module.Initialize(); code(t, err) == pkcs11.CKR_OK {
		defer func() { must(t, module.Finalize()) }()
	}
	slots, err := module.GetSlotList(true)
	must(t, err)
	for _, slot := range slots {
		info, err := module.GetTokenInfo(slot)
		must(t, err)
		if strings.TrimRight(info.Label, " \x00") != token.Label {
			continue
		}
		session, err := module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		must(t, err)
		if err := module.Login(session, pkcs11.CKU_USER, token.PIN); code(t, err) != pkcs11.CKR_USER_ALREADY_LOGGED_IN {
			must(t, err)
		}
		must(t, module.SetPIN(session, token.PIN, fresh))
		must(t, module.CloseSession(session))
	}
}

// The last try before a token locks is not the product's to use up, not even with the right PIN.
func TestKeyLeavesFinalTry(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		final := slices.IndexFunc(token.Can.WrongPINs, func(a tokens.Answer) bool { return a.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0 })
		if final < 0 {
			return // it does not say
		}
		public := generateRSA(t, token, "ca")
		a := newApplication(t, token)
		session := a.open(t)
		for range final + 1 {
			requireCode(t, "wrong PIN", a.Login(session, pkcs11.CKU_USER, "00000000"), pkcs11.CKR_PIN_INCORRECT)
		}
		a.unload()
		s := behind(t, token)
		c := config(token, "ca")
		c.Module = s.Module
		if err := newKey(t, c, public).Ready(t.Context()); !errors.Is(err, hsm.ErrPIN) {
			t.Errorf("with one try left: %v", err)
		}
		if n := calls(t, s).Count(shim.Login); n != 0 {
			t.Errorf("C_Login was called %d times:\n%s", n, calls(t, s))
		}
	})
}
