package tokens

import (
	"context"
	"errors"
	"os"

	"github.com/miekg/pkcs11"

	"hsm-signer/integration/testenv"
)

// NewP11Kit creates a token of SoftHSM behind p11-kit's server, which the client module reaches
// through a socket. So the token has its own process, like a network HSM.
func NewP11Kit(ctx context.Context) (*Token, error) {
	t := &Token{Name: "p11-kit", Label: label, Can: Capabilities{
		KeyTypes: allKeyTypes, Local: true, KnowsOldPIN: true, WrongPINs: softHSMShowsTries,
		Sessions: 0,
		Lost: &Loss{Sign: pkcs11.CKR_DEVICE_ERROR, OpenSession: pkcs11.CKR_DEVICE_ERROR,
			Initialize: pkcs11.CKR_OK},
	}}
	return newToken(ctx, t, setP11Kit)
}

func setP11Kit(ctx context.Context, t *Token) (err error) {
	if t.Module, err = testenv.FindLibrary("p11-kit-client.so", "p11-kit-modules"); err != nil {
		return err
	}
	soft, err := testenv.NewSoftHSM(ctx, t.dir, label)
	if err != nil {
		return err
	}
	socket := t.path("socket")
	t.PIN, t.Env, t.files = soft.PIN, []string{"P11_KIT_SERVER_ADDRESS=unix:path=" +
		socket}, soft.Tokens()
	return t.run(ctx, &daemon{
		name: "p11-kit-server",
		args: []string{"p11-kit", "server", "--foreground", "--name", socket, "--provider",
			soft.Module, "pkcs11:token=" + label},
		env:   []string{soft.Env()},
		ready: listens(socket),
		clean: func() error { return removeFiles(socket) },
	})
}

// removeFiles removes files that may be missing.
func removeFiles(paths ...string) error {
	var errs []error
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
