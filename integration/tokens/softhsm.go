package tokens

import (
	"context"

	"github.com/miekg/pkcs11"

	"hsm-signer/integration/testenv"
)

// label is the label of every token that can choose it.
const label = "ca"

// allKeyTypes are the ceremony's types without RSA-8192, which takes minutes.
var allKeyTypes = []string{"ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "rsa-2048", "rsa-3072",
	"rsa-4096"}

// neverLocks is a token that accepts any number of wrong PINs and does not show them.
var neverLocks = []Answer{{Code: pkcs11.CKR_PIN_INCORRECT}}

// softHSMShowsTries is SoftHSM, which never locks, and shows that a wrong PIN was tried.
var softHSMShowsTries = []Answer{{Code: pkcs11.CKR_PIN_INCORRECT,
	Flags: pkcs11.CKF_USER_PIN_COUNT_LOW}}

// NewSoftHSM creates a token in files that the module reads in the application's own process.
func NewSoftHSM(ctx context.Context) (*Token, error) {
	t := &Token{Name: "softhsm", Label: label, Can: Capabilities{
		KeyTypes: allKeyTypes, Local: true, WrongPINs: softHSMShowsTries, Sessions: 0,
	}}
	return newToken(ctx, t, func(ctx context.Context, t *Token) (err error) {
		soft, err := testenv.NewSoftHSM(ctx, t.dir, label)
		if err != nil {
			return err
		}
		t.Module, t.PIN, t.Env, t.files = soft.Module, soft.PIN, []string{soft.Env()}, soft.Tokens()
		return nil
	})
}
