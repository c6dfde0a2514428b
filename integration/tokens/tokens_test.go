package tokens_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm"
	"hsm-signer/integration/must"
	"hsm-signer/integration/tokens"
)

// pinFlags are the flags that report wrong PINs.
const pinFlags = pkcs11.CKF_USER_PIN_COUNT_LOW | pkcs11.CKF_USER_PIN_FINAL_TRY |
	pkcs11.CKF_USER_PIN_LOCKED

// keyTypes are the types of key that every token is asked for. RSA-8192 takes minutes on tokens
// that support it.
var keyTypes = []string{"ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "rsa-2048", "rsa-3072",
	"rsa-4096"}

// forEach runs a test with a new token of each kind.
func forEach(t *testing.T, test func(*testing.T, *tokens.Token)) {
	for _, kind := range tokens.All() {
		t.Run(kind.Name, func(t *testing.T) { test(t, fresh(t, kind)) })
	}
}

// fresh returns a token that this process can reach until the end of the test.
func fresh(t *testing.T, kind tokens.Kind) *tokens.Token {
	t.Helper()
	token := must.Get(kind.New(t.Context()))(t)
	t.Cleanup(func() {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	})
	must.Setenv(t, token.Env...)
	return token
}

// config returns the product's configuration for a key with this label.
func config(token *tokens.Token, key string) hsm.Config {
	return hsm.Config{Module: token.Module, Token: hsm.TokenID{Label: token.Label},
		PIN: hsm.PIN(token.PIN).Fixed(), Key: hsm.KeyID{Label: key}}
}

// code returns the CKR code in an error, or CKR_OK.
func code(t *testing.T, err error) uint {
	t.Helper()
	var ckr pkcs11.Error
	switch {
	case err == nil:
		return pkcs11.CKR_OK
	case errors.As(err, &ckr):
		return uint(ckr)
	}
	t.Fatalf("%v is no CKR code", err)
	return 0
}

func TestKeys(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		for _, keyType := range keyTypes {
			t.Run(keyType, func(t *testing.T) {
				public, err := token.Generate(keyType, keyType, []byte{1})
				if !token.Can.Makes(keyType) {
					if want := token.Can.Refuses[keyType]; want == "" || err == nil ||
						!strings.Contains(err.Error(), want) {
						t.Errorf("refused with %v, want %q", err, want)
					}
					return
				}
				must.OK(t, err)
				key := must.Get(hsm.NewKey(config(token, keyType), public))(t)
				defer key.Close()
				requireProof(t, token, key)
				requireSignatures(t, key, public)
			})
		}
	})
}

// requireProof requires the attributes of a key that cannot leave the token, and CKA_LOCAL as its
// kind of token sets it.
func requireProof(t *testing.T, token *tokens.Token, key *hsm.Key) {
	t.Helper()
	proof := must.Get(key.Attributes(t.Context()))(t)
	if !proof.Holds() {
		t.Errorf("the key could leave: %s", proof)
	}
	for _, a := range proof.Attributes {
		if want := a.Name != "CKA_LOCAL" || token.Can.Local; (a.Known && a.Is == a.Want) != want {
			t.Errorf("%s is known: %t, and %t; want it right: %t", a.Name, a.Known, a.Is, want)
		}
	}
}

// requireSignatures requires a valid signature of every form that certificates use.
func requireSignatures(t *testing.T, key *hsm.Key, public crypto.PublicKey) {
	t.Helper()
	digest := sha256.Sum256([]byte("to be signed"))
	sign := func(opts crypto.SignerOpts) []byte {
		return must.Get(key.Signer(t.Context()).Sign(nil, digest[:], opts))(t)
	}
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(public, digest[:], sign(crypto.SHA256)) {
			t.Error("the ECDSA signature does not verify")
		}
	case *rsa.PublicKey:
		if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:],
			sign(crypto.SHA256)); err != nil {
			t.Errorf("PKCS#1 v1.5: %v", err)
		}
		pss := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
		if err := rsa.VerifyPSS(public, crypto.SHA256, digest[:], sign(pss), pss); err != nil {
			t.Errorf("PSS: %v", err)
		}
	default:
		t.Errorf("a public key of type %T", public)
	}
}

// An application uses a token without the product.
type application struct {
	*pkcs11.Ctx
	token *tokens.Token
	slot  uint
}

func newApplication(t *testing.T, token *tokens.Token) *application {
	t.Helper()
	a := &application{token: token}
	t.Cleanup(a.unload)
	must.OK(t, a.load(t))
	slots := must.Get(a.GetSlotList(true))(t)
	i := slices.IndexFunc(slots, func(slot uint) bool {
		info, err := a.GetTokenInfo(slot)
		return err == nil && strings.TrimRight(info.Label, " \x00") == token.Label
	})
	if i < 0 {
		t.Fatalf("none of the %d tokens is labelled %q", len(slots), token.Label)
	}
	a.slot = slots[i]
	return a
}

// load loads and initializes the module. It returns the error of C_Initialize.
func (a *application) load(t *testing.T) error {
	t.Helper()
	if a.Ctx = pkcs11.New(a.token.Module); a.Ctx == nil {
		t.Fatalf("%s cannot be loaded", a.token.Module)
	}
	return a.Initialize()
}

func (a *application) unload() {
	if a.Ctx != nil {
		_ = a.Finalize()
		a.Destroy()
		a.Ctx = nil
	}
}

func (a *application) open(t *testing.T) pkcs11.SessionHandle {
	t.Helper()
	return must.Get(a.OpenSession(a.slot, pkcs11.CKF_SERIAL_SESSION))(t)
}

func TestWrongPIN(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		a := newApplication(t, token)
		session := a.open(t)
		// What the last answer says must be true twice.
		for _, want := range append(token.Can.WrongPINs,
			token.Can.WrongPINs[len(token.Can.WrongPINs)-1]) {
			got := code(t, a.Login(session, pkcs11.CKU_USER, "00000000"))
			info := must.Get(a.GetTokenInfo(a.slot))(t)
			if got != want.Code || info.Flags&pinFlags != want.Flags {
				t.Errorf("%v and flags %#x, want %v and %#x", pkcs11.Error(got),
					info.Flags&pinFlags, pkcs11.Error(want.Code), want.Flags)
			}
		}
		want := uint(pkcs11.CKR_OK)
		if token.Can.Locks() {
			want = pkcs11.CKR_PIN_LOCKED
		}
		requireCode(t, "the right PIN", a.Login(session, pkcs11.CKU_USER, token.PIN), want)
	})
}

func TestSessions(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		a := newApplication(t, token)
		info, err := a.GetTokenInfo(a.slot)
		must.OK(t, err)
		if info.MaxSessionCount != token.Can.Sessions {
			t.Errorf("it says that it allows %d sessions, want %d", info.MaxSessionCount,
				token.Can.Sessions)
		}
		const many = 1100
		opened := 0
		for err == nil && opened < many {
			if _, err = a.OpenSession(a.slot, pkcs11.CKF_SERIAL_SESSION); err == nil {
				opened++
			}
		}
		switch {
		case !token.Can.Limited && opened != many:
			t.Errorf("it refuses session %d: %v", opened+1, err)
		case token.Can.Limited &&
			(opened != int(token.Can.Sessions) || code(t, err) != pkcs11.CKR_SESSION_COUNT):
			t.Errorf("it opened %d sessions, then %v; want CKR_SESSION_COUNT after %d", opened, err,
				token.Can.Sessions)
		}
	})
}

// generateRSA creates a key of the one type that every kind of token supports.
func generateRSA(t *testing.T, token *tokens.Token, label string) crypto.PublicKey {
	t.Helper()
	return must.Get(token.Generate("rsa-2048", label, []byte{1}))(t)
}

// loggedIn opens a session, logs in, and finds the only private key.
func (a *application) loggedIn(t *testing.T) (pkcs11.SessionHandle, pkcs11.ObjectHandle) {
	t.Helper()
	session := a.open(t)
	must.OK(t, a.Login(session, pkcs11.CKU_USER, a.token.PIN))
	must.OK(t,
		a.FindObjectsInit(session,
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)}))
	keys, _, err := a.FindObjects(session, 2)
	must.OK(t, errors.Join(err, a.FindObjectsFinal(session)))
	if len(keys) != 1 {
		t.Fatalf("found %d private keys, want one", len(keys))
	}
	return session, keys[0]
}

func (a *application) sign(session pkcs11.SessionHandle, key pkcs11.ObjectHandle) error {
	if err := a.SignInit(session,
		[]*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil)}, key); err != nil {
		return err
	}
	_, err := a.Sign(session, []byte("to be signed"))
	return err
}

// requireCode requires a CKR code.
func requireCode(t *testing.T, what string, err error, want uint) {
	t.Helper()
	if got := code(t, err); got != want {
		t.Errorf("%s: %v, want %v", what, pkcs11.Error(got), pkcs11.Error(want))
	}
}

// An application sees these errors when the token's daemon dies and comes back.
func TestDaemonDies(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		if token.Can.Lost == nil {
			if err := token.Kill(); !errors.Is(err, tokens.ErrNoDaemon) {
				t.Errorf("killing a missing daemon: %v", err)
			}
			return
		}
		generateRSA(t, token, "k")
		a := newApplication(t, token)
		session, key := a.loggedIn(t)
		must.OK(t, a.sign(session, key))
		lost := func(when string) {
			requireCode(t, "signature "+when, a.sign(session, key), token.Can.Lost.Sign)
			_, err := a.OpenSession(a.slot, pkcs11.CKF_SERIAL_SESSION)
			requireCode(t, "C_OpenSession "+when, err, token.Can.Lost.OpenSession)
		}
		must.OK(t, token.Kill())
		lost("while it is gone")
		must.OK(t, token.Start(t.Context()))
		lost("when it is back")

		must.OK(t, token.Kill())
		a.unload()
		requireCode(t, "C_Initialize while it is gone", a.load(t), token.Can.Lost.Initialize)
		a.unload()
		must.OK(t, token.Start(t.Context()))
		must.OK(t, a.load(t))
		session, key = a.loggedIn(t)
		must.OK(t, a.sign(session, key))
	})
}

// An application waits for a hanging daemon, and nothing is lost.
func TestDaemonHangs(t *testing.T) {
	forEach(t, func(t *testing.T, token *tokens.Token) {
		if token.Can.Lost == nil {
			return
		}
		generateRSA(t, token, "k")
		a := newApplication(t, token)
		session, key := a.loggedIn(t)
		must.OK(t, token.Pause())
		signed := make(chan error, 1)
		go func() { signed <- a.sign(session, key) }()
		if token.Can.Lost.Sign == pkcs11.CKR_OK {
			must.OK(t, <-signed) // it does not need its daemon
			must.OK(t, token.Continue())
			return
		}
		must.OK(t, token.Continue())
		must.OK(t, <-signed)
	})
}
