// Package pkcs11shim injects faults between an application and a PKCS#11 module.
//
// Duty: a module in C that loads the real one, passes calls on and logs each. Rules make calls
// fail, wait or return wrong results. Tests may change the rules while the application runs.
//
// Contract: an application that loads Module with the variables of Env talks to the real module. It
// needs the real module's own variables as before. Without rules the shim changes no answer. Each
// process has its own rules and counts of calls; the log is shared. A process may use several shims
// one after another: the environment at the time of loading decides. Of all arguments the shim logs
// only the data that C_Sign signs, so the log has no PIN.
package pkcs11shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The environment variables of the module in C.
const (
	moduleVariable = "HSM_SHIM_MODULE"
	rulesVariable  = "HSM_SHIM_RULES"
	logVariable    = "HSM_SHIM_LOG"
)

// A Shim is a shim before one module, with its own rules and log.
type Shim struct {
	Module string // path of the library that the application must load
	Real   string // path of the library behind it

	dir string
}

// New returns a shim without rules before the module real. Its files are in dir, which must exist
// and which the caller removes. New compiles the library unless the user's cache has it.
func New(ctx context.Context, dir, real string) (*Shim, error) {
	if _, err := os.Stat(real); err != nil {
		return nil, fmt.Errorf("module behind the shim: %w", err)
	}
	library, err := compile(ctx)
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s := &Shim{Module: library, Real: real, dir: dir}
	if err := errors.Join(s.Rules(), s.Forget()); err != nil {
		return nil, err
	}
	return s, nil
}

// Env returns the environment with which hsm-signer loads the shim, and the shim finds the real
// module, its rules and its log.
func (s *Shim) Env() []string {
	return []string{"PKCS11_MODULE=" + s.Module, moduleVariable + "=" + s.Real,
		rulesVariable + "=" + s.rulesFile(), logVariable + "=" + s.logFile()}
}

// Rules replaces all rules; without arguments the shim does nothing. The rules apply from the next
// call of each process, and count calls from there.
func (s *Shim) Rules(rules ...Rule) error {
	if len(rules) > maxRules {
		return fmt.Errorf("%d rules; the shim takes %d", len(rules), maxRules)
	}
	var text strings.Builder
	for _, rule := range rules {
		line := rule.String()
		if len(line) > maxLine {
			return fmt.Errorf("rule %q is too long", line)
		}
		text.WriteString(line + "\n")
	}
	// A process that reads meanwhile sees the old file or the new one.
	fresh := s.rulesFile() + ".new"
	if err := os.WriteFile(fresh, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("rules of the shim: %w", err)
	}
	return os.Rename(fresh, s.rulesFile())
}

// What fits in the module's tables.
const (
	maxRules = 64
	maxLine  = 500
)

func (s *Shim) rulesFile() string { return filepath.Join(s.dir, "shim.rules") }
func (s *Shim) logFile() string   { return filepath.Join(s.dir, "shim.log") }
