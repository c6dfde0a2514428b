package tokens

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/miekg/pkcs11"

	"hsm-signer/integration/testenv"
)

// The paths of opencryptoki's daemon, which cannot be configured.
const (
	ockConfig = "/etc/opencryptoki/opencryptoki.conf"
	ockToken  = "/var/lib/opencryptoki/swtok"
	ockLocks  = "/var/lock/opencryptoki"
	ockSocket = "/var/run/pkcsslotd.socket"
	ockPID    = "/var/run/pkcsslotd.pid"
	ockShared = "/dev/shm/var.lib.opencryptoki.swtok"
	ockSlot   = 3
	ockSOPIN  = "87654321" // of a token that is not initialised yet
)

// NewOpencryptoki creates a soft token of opencryptoki, which has a daemon. It needs root.
func NewOpencryptoki(ctx context.Context) (*Token, error) {
	const low, final, locked = pkcs11.CKF_USER_PIN_COUNT_LOW, pkcs11.CKF_USER_PIN_FINAL_TRY,
		pkcs11.CKF_USER_PIN_LOCKED
	t := &Token{Name: "opencryptoki", Label: label, PIN: "7341user", Can: Capabilities{
		KeyTypes: []string{"rsa-2048", "rsa-3072", "rsa-4096"},
		Refuses: map[string]string{"ecdsa-p256": "CKR_MECHANISM_INVALID",
			"ecdsa-p384": "CKR_MECHANISM_INVALID", "ecdsa-p521": "CKR_MECHANISM_INVALID"},
		Local: true, FinalizedOnce: true,
		WrongPINs: []Answer{
			{pkcs11.CKR_PIN_INCORRECT, low}, {pkcs11.CKR_PIN_INCORRECT, final},
			{pkcs11.CKR_PIN_INCORRECT, locked}, {pkcs11.CKR_PIN_LOCKED, locked},
		},
		Sessions: ^uint(0) - 1, Lost: &Loss{Sign: pkcs11.CKR_OK, OpenSession: pkcs11.CKR_OK,
			Initialize: pkcs11.CKR_FUNCTION_FAILED},
	}}
	return newToken(ctx, t, setOpencryptoki)
}

func setOpencryptoki(ctx context.Context, t *Token) (err error) {
	if t.Module, err = testenv.FindLibrary("libopencryptoki.so", "opencryptoki"); err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return errors.New("opencryptoki's daemon needs root: run the tests as root, in a " +
			"container for instance")
	}
	if err := t.claim(ctx, "opencryptoki"); err != nil {
		return err
	}
	if pid, runs := runningPkcsslotd(); runs {
		return fmt.Errorf("a pkcsslotd runs already (process %s): stop it", pid)
	}
	if err := t.replaceOpencryptoki(); err != nil {
		return err
	}
	err = t.run(ctx, &daemon{
		name: "pkcsslotd", args: []string{program("pkcsslotd"), "-f"},
		ready: listens(ockSocket),
		clean: func() error { return removeFiles(ockSocket, ockPID) },
	})
	if err != nil {
		return err
	}
	keepLibitm()
	t.unlock = func(ctx context.Context) error {
		slot := strconv.Itoa(ockSlot)
		return errors.Join(command(ctx, nil, program("pkcsconf"), "-c", slot, "-u", "-S", ockSOPIN,
			"-n", t.PIN),
			// which forgets that one try was left
			command(ctx, nil, program("pkcsconf"), "-c", slot, "-p", "-U", t.PIN, "-n", t.PIN))
	}
	return t.initialize(ockSlot, ockSOPIN)
}

// runningPkcsslotd finds a daemon that another program started.
func runningPkcsslotd() (pid string, runs bool) {
	text, err := os.ReadFile(ockPID)
	if err != nil {
		return "", false
	}
	pid = strings.TrimSpace(string(text))
	name, err := os.ReadFile("/proc/" + pid + "/comm")
	return pid, err == nil && strings.TrimSpace(string(name)) == "pkcsslotd"
}

// replaceOpencryptoki replaces the daemon's configuration and the directory of its token.
func (t *Token) replaceOpencryptoki() error {
	t.undo = append(t.undo, func() error { return removeFiles(ockSocket, ockPID, ockShared) })
	if err := removeFiles(ockShared); err != nil {
		return err
	}
	err := t.replace(ockConfig, func() error {
		text := fmt.Sprintf("version opencryptoki-3.1\n\nslot %d\n{\nstdll = libpkcs11_sw.so\n}\n",
			ockSlot)
		return os.WriteFile(ockConfig, []byte(text), 0o644)
	})
	if err != nil {
		return err
	}
	for _, directory := range []string{ockLocks + "/swtok", "/var/log/opencryptoki"} {
		if err := os.MkdirAll(directory, 0o770); err != nil {
			return err
		}
	}
	t.files = ockToken
	return t.replace(ockToken, func() error { return os.MkdirAll(ockToken+"/TOK_OBJ", 0o770) })
}

// initialize initializes the token in a slot as its security officer: it sets the officer's and the
// user's PIN.
func (t *Token) initialize(slot uint, soPIN string) (err error) {
	module := pkcs11.New(t.Module)
	if module == nil {
		return fmt.Errorf("%s cannot be loaded", t.Module)
	}
	defer module.Destroy()
	if err := module.Initialize(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, module.Finalize()) }()
	if err := module.InitToken(slot, soPIN, t.Label); err != nil {
		return fmt.Errorf("initialise the token: %w", err)
	}
	session, err := module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return err
	}
	if err := module.Login(session, pkcs11.CKU_SO, soPIN); err != nil {
		return fmt.Errorf("log in as security officer: %w", err)
	}
	if err := module.InitPIN(session, t.PIN); err != nil {
		return fmt.Errorf("set the user's PIN: %w", err)
	}
	return nil
}
