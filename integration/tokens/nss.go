package tokens

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"hsm-signer/integration/testenv"
)

// NewNSS creates a token of NSS behind p11-kit's proxy. NSS needs its directory when it is
// initialized; the proxy passes it, an ordinary application does not.
func NewNSS(ctx context.Context) (*Token, error) {
	t := &Token{Name: "nss", Label: "NSS Certificate DB", PIN: "7341-user", Can: Capabilities{
		KeyTypes: allKeyTypes, WrongPINs: neverLocks, Sessions: 0,
	}}
	return newToken(ctx, t, setNSS)
}

func setNSS(ctx context.Context, t *Token) (err error) {
	if t.Module, err = testenv.FindLibrary("p11-kit-proxy.so", "p11-kit-modules"); err != nil {
		return err
	}
	library, err := testenv.FindLibrary("libsoftokn3.so", "libnss3")
	if err != nil {
		return err
	}
	if err := t.claim(ctx, fmt.Sprintf("p11-kit-%d", os.Getuid())); err != nil {
		return err
	}
	// p11-kit reads its configuration once in a process, so every token of this one has
	// its database in the same place, one after another.
	database := filepath.Join(os.TempDir(), fmt.Sprintf("token-nss-%d", os.Getpid()))
	t.files = database
	t.undo = append(t.undo, func() error { return os.RemoveAll(database) })
	if err := errors.Join(os.RemoveAll(database), os.Mkdir(database, 0o700)); err != nil {
		return err
	}
	pin := t.path("pin")
	if err := os.WriteFile(pin, []byte(t.PIN), 0o600); err != nil {
		return err
	}
	// NSS hashes the PIN ten thousand times at each login, which shows nothing here.
	t.Env = append(t.Env, "NSS_MAX_MP_PBE_ITERATION_COUNT=1")
	if err := command(ctx, t.Env, "certutil", "-N", "-d", "sql:"+database, "-f", pin); err != nil {
		return err
	}
	return t.configureP11Kit(fmt.Sprintf("module: %s\nx-init-reserved: configdir='sql:%s' "+
		"certPrefix='' keyPrefix='' secmod='secmod.db' flags=\n", library, database))
}

// configureP11Kit makes p11-kit's proxy show only the tokens of this module. For root only the
// system's directory can do that, because p11-kit does not read root's own.
func (t *Token) configureP11Kit(module string) error {
	config := "/etc/pkcs11"
	if os.Getuid() != 0 {
		config = t.path("pkcs11")
		t.Env = append(t.Env, "XDG_CONFIG_HOME="+t.dir)
	}
	files := map[string]string{"pkcs11.conf": "user-config: only\n",
		"modules/hsm-signer-nss.module": module}
	others, err := filepath.Glob("/usr/share/p11-kit/modules/*.module")
	if err != nil {
		return err
	}
	for _, other := range others {
		files["modules/"+filepath.Base(other)] = "module:\n"
	}
	return t.replace(config, func() error {
		if err := os.MkdirAll(filepath.Join(config, "modules"), 0o755); err != nil {
			return err
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(config, name), []byte(text), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}
