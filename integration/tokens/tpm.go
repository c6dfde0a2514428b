package tokens

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"os/exec"
	"strings"
	"sync"

	"github.com/miekg/pkcs11"

	"hsm-signer/integration/testenv"
)

// NewTPM creates a token in a TPM 2.0: tpm2-pkcs11 over the resource manager tpm2-abrmd over the
// software TPM swtpm. The daemon is both processes: when it is killed, the TPM loses its power.
func NewTPM(ctx context.Context) (*Token, error) {
	t := &Token{Name: "tpm", Label: label, PIN: "7341-user", Can: Capabilities{
		KeyTypes: []string{"ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-3072"},
		Refuses: map[string]string{"ecdsa-p521": errPoint.Error(),
			"rsa-4096": "CKR_ATTRIBUTE_VALUE_INVALID"},
		// else it answers CKR_GENERAL_ERROR
		Unsaid: []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT},
		Local:  true,
		WrongPINs: []Answer{
			{Code: pkcs11.CKR_PIN_INCORRECT}, {Code: pkcs11.CKR_PIN_INCORRECT},
			{Code: pkcs11.CKR_PIN_INCORRECT}, {Code: pkcs11.CKR_PIN_LOCKED},
		},
		Sessions: 1024, Limited: true, Lost: &Loss{Sign: pkcs11.CKR_GENERAL_ERROR,
			OpenSession: pkcs11.CKR_OK, Initialize: pkcs11.CKR_GENERAL_ERROR},
	}}
	return newToken(ctx, t, setTPM)
}

func setTPM(ctx context.Context, t *Token) (err error) {
	if t.Module, err = testenv.FindLibrary("libtpm2_pkcs11.so", "libtpm2-pkcs11-1"); err != nil {
		return err
	}
	bus, err := messageBus()
	if err != nil {
		return err
	}
	name := "com.intel.tss2.Tabrmd.Test" + rand.Text()
	tcti := "tabrmd:bus_name=" + name + ",bus_type=session"
	t.Env = []string{"DBUS_SESSION_BUS_ADDRESS=" + bus, "TPM2_PKCS11_TCTI=" + tcti,
		"TPM2_PKCS11_STORE=" + t.dir, "TPM2_PKCS11_LOG_LEVEL=0", "TSS2_LOG=all+none"}
	if err := t.runTPM(ctx, bus, name); err != nil {
		return err
	}
	tools := append([]string{"TPM2TOOLS_TCTI=" + tcti}, t.Env...)
	t.files = t.path("tpm2_pkcs11.sqlite3")
	t.unlock = func(ctx context.Context) error {
		return command(ctx, tools, "tpm2_dictionarylockout", "--clear-lockout")
	}
	if err := command(ctx, tools, "tpm2_ptool", "init"); err != nil {
		return err
	}
	return command(ctx, tools, "tpm2_ptool", "addtoken", "--pid=1", "--label="+t.Label,
		"--sopin=9852-officer", "--userpin="+t.PIN)
}

// runTPM starts the TPM, and the resource manager with this name on the bus.
func (t *Token) runTPM(ctx context.Context, bus, name string) error {
	socket := t.path("tpm")
	err := t.run(ctx, &daemon{
		name: "swtpm",
		args: []string{"swtpm", "socket", "--tpm2", "--tpmstate", "dir=" + t.dir, "--flags",
			"not-need-init,startup-clear",
			"--server", "type=unixio,path=" + socket, "--ctrl", "type=unixio,path=" + socket +
				".ctrl"},
		ready: listens(socket, socket+".ctrl"),
		clean: func() error { return removeFiles(socket, socket+".ctrl") },
	})
	if err != nil {
		return err
	}
	env := []string{"DBUS_SESSION_BUS_ADDRESS=" + bus}
	return t.run(ctx, &daemon{
		name: "tpm2-abrmd",
		args: []string{program("tpm2-abrmd"), "--session", "--allow-root", "--dbus-name=" + name,
			"--tcti=swtpm:path=" + socket},
		env:   env,
		ready: func(ctx context.Context) bool { return onBus(ctx, env, name) },
	})
}

// onBus reports whether the name is taken on the bus.
func onBus(ctx context.Context, env []string, name string) bool {
	return command(ctx, env, "dbus-send", "--session", "--print-reply",
		"--dest=org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.GetNameOwner",
		"string:"+name) == nil
}

// messageBus starts a D-Bus for this process, once, and returns its address. It lasts as long as
// the process: GLib, which the module uses, ends a process whose bus closes.
var messageBus = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address=1",
		"--address=unix:abstract=hsm-signer-"+rand.Text())
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if _, err := testenv.Spawn(cmd); err != nil {
		return "", fmt.Errorf("start dbus-daemon: %w; run `make setup`", err)
	}
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("dbus-daemon says no address: %w", err)
	}
	return strings.TrimSpace(address), nil
})
