package pkcs11shim_test

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"math/big"
	"os"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/tokens"
)

// An application is this process with the shim over SoftHSM, logged in, with two keys.
type application struct {
	shim    *pkcs11shim.Shim
	token   *tokens.Token
	module  *pkcs11.Ctx
	slot    uint
	session pkcs11.SessionHandle
	public  map[string]*ecdsa.PublicKey // by label
	private map[string]pkcs11.ObjectHandle
}

var digest = sha256.Sum256([]byte("to be signed"))

const (
	first  = "first"
	second = "second"
)

func newApplication(t *testing.T) *application {
	t.Helper()
	token := must.Get(tokens.NewSoftHSM(t.Context()))(t)
	t.Cleanup(func() { must.OK(t, token.Close()) })
	must.Setenv(t, token.Env...)
	a := &application{token: token, public: map[string]*ecdsa.PublicKey{},
		private: map[string]pkcs11.ObjectHandle{}}
	for i, label := range []string{first, second} {
		public := must.Get(token.Generate("ecdsa-p256", label, []byte{byte(i)}))(t)
		a.public[label] = public.(*ecdsa.PublicKey)
	}
	a.shim = must.Get(pkcs11shim.New(t.Context(), t.TempDir(), token.Module))(t)
	must.Setenv(t, a.shim.Env()...)
	a.module = pkcs11.New(a.shim.Module)
	if a.module == nil {
		t.Fatal("the shim cannot be loaded")
	}
	must.OK(t, a.module.Initialize())
	t.Cleanup(func() {
		_ = a.module.Finalize()
		a.module.Destroy()
	})
	a.open(t)
	for label := range a.public {
		a.private[label] = must.Get(a.find(label))(t)
	}
	must.OK(t, a.shim.Forget())
	return a
}

// open opens a session, logs in, and keeps the session for the other helpers.
func (a *application) open(t *testing.T) {
	t.Helper()
	a.slot = must.Get(a.module.GetSlotList(true))(t)[0]
	a.session = must.Get(a.module.OpenSession(a.slot,
		pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION))(t)
	must.OK(t, a.module.Login(a.session, pkcs11.CKU_USER, a.token.PIN))
}

// sign signs, and returns the label of the key or the error's text.
func (a *application) sign(session pkcs11.SessionHandle, key pkcs11.ObjectHandle) string {
	if err := a.module.SignInit(session,
		[]*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}, key); err != nil {
		return name(err)
	}
	raw, err := a.module.Sign(session, digest[:])
	if err != nil {
		return name(err)
	}
	r, s := new(big.Int).SetBytes(raw[:len(raw)/2]), new(big.Int).SetBytes(raw[len(raw)/2:])
	for label, public := range a.public {
		if ecdsa.Verify(public, digest[:], r, s) {
			return label
		}
	}
	return "a key that nobody knows"
}

// find returns the private key with this label, or an error if there is none.
func (a *application) find(label string) (pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}
	if err := a.module.FindObjectsInit(a.session, template); err != nil {
		return 0, err
	}
	found, _, err := a.module.FindObjects(a.session, 2)
	if final := a.module.FindObjectsFinal(a.session); err == nil {
		err = final
	}
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%d keys labelled %q", len(found), label)
	}
	if err != nil {
		return 0, err
	}
	return found[0], nil
}

func (a *application) label(t *testing.T, key pkcs11.ObjectHandle) string {
	t.Helper()
	values := must.Get(a.module.GetAttributeValue(a.session, key,
		[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, nil)}))(t)
	return string(values[0].Value)
}

func (a *application) rules(t *testing.T, rules ...pkcs11shim.Rule) {
	t.Helper()
	must.OK(t, a.shim.Rules(rules...))
}

func (a *application) calls(t *testing.T) pkcs11shim.Calls {
	t.Helper()
	return must.Get(a.shim.Calls())(t)
}

// name returns the name of the CKR code.
func name(err error) string {
	if err == nil {
		return "CKR_OK"
	}
	text := err.Error()
	return text[strings.LastIndex(text, " ")+1:]
}

// childVariable makes this test program sign once and exit.
const childVariable = "SHIM_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		os.Exit(child())
	}
	os.Exit(m.Run())
}
