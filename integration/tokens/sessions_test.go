package tokens_test

import (
	"crypto"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"
	"time"

	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
)

// If calls are slow, more sessions sign, up to half of those that the token has free. A limit that
// is set stays, and so does the first number of sessions if the token does not know its limit.
func TestSessionsGrowIfCallsAreSlow(t *testing.T) {
	const callers, atFirst = 40, 16
	for _, c := range []struct {
		token uint // allows so many sessions
		most  int  // PKCS11_MAX_SESSIONS
		want  int
	}{
		{pkcs11shim.SessionsUnlimited, 0, callers}, {60, 0, 29},
		{pkcs11shim.SessionsUnknown, 0, atFirst}, {60, 20, 20},
	} {
		s, config, public := quirky(t, "ecdsa-p256")
		must.OK(t, s.Rules(pkcs11shim.ReportSessions(c.token),
			pkcs11shim.Delay(pkcs11shim.Sign, 20*time.Millisecond)))
		config.MaxSessions = c.most
		key := newKey(t, config, public)
		must.OK(t, key.Ready(t.Context()))
		digest := sha256.Sum256(nil)
		var group sync.WaitGroup
		for range callers {
			group.Go(func() {
				for n := 0; n < 8 || key.Stats().Sessions.Most < c.want; n++ {
					if _, err := key.Signer(t.Context()).Sign(nil, digest[:],
						crypto.SHA256); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		if got := key.Stats().Sessions.Most; got != c.want {
			t.Errorf("a token that allows %d, and %d set: %d sessions may sign, want %d", c.token,
				c.most, got, c.want)
		}
		key.Close()
	}
}

// A signature takes two calls, whatever the key.
func TestCallsOfASignature(t *testing.T) {
	digest := sha256.Sum256(nil)
	for keyType, hash := range map[string]crypto.Hash{"ecdsa-p256": crypto.SHA256,
		"ecdsa-p521": crypto.SHA256, "rsa-2048": crypto.SHA256, "ed25519": 0} {
		s, config, public := quirky(t, keyType)
		config.Signature = hash
		key := newKey(t, config, public)
		must.OK(t, errors.Join(key.Ready(t.Context()), s.Forget()))
		for range 3 {
			must.Get(key.Signer(t.Context()).Sign(nil, digest[:], hash))(t)
		}
		if all := calls(t, s); len(all) != 6 || all.Count(pkcs11shim.Sign) != 3 {
			t.Errorf("%s: three signatures took\n%s", keyType, all)
		}
		key.Close()
	}
}
