package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// SoftHSMVariable names the configuration file that the SoftHSM module reads when it is loaded.
const SoftHSMVariable = "SOFTHSM2_CONF"

const softhsmTool = "softhsm2-util"

// A SoftHSM is a PKCS#11 token in software, in its own directory. A process that loads Module must
// set SOFTHSM2_CONF to Conf.
type SoftHSM struct {
	Module string // path of the PKCS#11 library
	Conf   string // value of SOFTHSM2_CONF
	Label  string // of the token
	PIN    string // of the user
	SOPIN  string // of the security officer

	dir string
}

// NewSoftHSM creates a token with that label in dir, and creates dir if it is missing. The caller
// removes dir.
func NewSoftHSM(ctx context.Context, dir, label string) (*SoftHSM, error) {
	if _, err := exec.LookPath(softhsmTool); err != nil {
		return nil, fmt.Errorf("SoftHSM is missing (%w): run `make setup`, or install the package "+
			"softhsm2", err)
	}
	module, err := FindLibrary("libsofthsm2.so", "softhsm2")
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	t := &SoftHSM{
		Module: module, Conf: filepath.Join(dir, "softhsm2.conf"), Label: label,
		PIN: "7341-user", SOPIN: "9852-officer", dir: dir,
	}
	if err := os.MkdirAll(t.Tokens(), 0o700); err != nil {
		return nil, fmt.Errorf("directory of token %q: %w", label, err)
	}
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level "+
		"= ERROR\n", t.Tokens())
	if err := os.WriteFile(t.Conf, []byte(conf), 0o600); err != nil {
		return nil, fmt.Errorf("configuration of token %q: %w", label, err)
	}
	if err := t.AddToken(ctx, label, t.PIN); err != nil {
		return nil, err
	}
	return t, nil
}

// AddToken creates another token, which the module shows too.
func (t *SoftHSM) AddToken(ctx context.Context, label, pin string) error {
	_, err := Output(ctx, "", []string{t.Env()}, softhsmTool, "--init-token", "--free", "--label",
		label, "--pin", pin, "--so-pin", t.SOPIN)
	return err
}

// Env returns the environment variable with which the module finds the token.
func (t *SoftHSM) Env() string { return SoftHSMVariable + "=" + t.Conf }

// MoveAway moves the token's files away, as if the token were unplugged.
func (t *SoftHSM) MoveAway() error { return os.Rename(t.Tokens(), t.Tokens()+".away") }

// MoveBack undoes MoveAway.
func (t *SoftHSM) MoveBack() error { return os.Rename(t.Tokens()+".away", t.Tokens()) }

// Tokens returns the directory of the token's files.
func (t *SoftHSM) Tokens() string { return filepath.Join(t.dir, "tokens") }
