// Package pkcs11shim puts faults between an application and a PKCS#11 module.
//
// Duty: a module of its own, in C, that loads the real one, hands its calls on,
// writes down each, and answers, waits or lies where rules say so. The rules may be
// changed while the application runs.
//
// Contract: an application that loads Module with the variables of Env in its
// environment talks to the real module, whose own variables it needs as before.
// With no rules the shim changes no answer. Rules and counts of calls are those of
// each process; the log is that of all. A process may use several shims one after
// another: which one is asked of the environment when the module is loaded.
// Of all arguments only what C_Sign is to sign is written down, so the log holds no PIN.
package pkcs11shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The variables of the environment that the module in C reads.
const (
	moduleVariable = "HSM_SHIM_MODULE"
	rulesVariable  = "HSM_SHIM_RULES"
	logVariable    = "HSM_SHIM_LOG"
)

// A Shim stands before one module, with rules and a log of its own.
type Shim struct {
	Module string // path of the library that the application must load
	Real   string // path of the library behind it

	dir string
}

// New returns a shim before the module real, without rules. Its files are in dir, which
// must exist and stays the caller's to remove. The library is compiled when it is not in
// the user's cache yet.
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

// Env is the environment with which the shim finds the real module, its rules and its log.
func (s *Shim) Env() []string {
	return []string{moduleVariable + "=" + s.Real, rulesVariable + "=" + s.rulesFile(),
		logVariable + "=" + s.logFile()}
}

// Rules puts these rules in the place of all others; without any, the shim does nothing
// any more. They hold from the next call of each process on, and count calls from there.
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
