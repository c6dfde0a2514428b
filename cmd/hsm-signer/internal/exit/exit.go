// Package exit defines the exit codes of hsm-signer, and errors that carry one.
package exit

import (
	"errors"

	"hsm-signer/hsm"
)

// Exit codes.
const (
	Fault   = 1 // something failed
	Refused = 2 // refused, or a check failed
	PIN     = 3 // the PIN was refused or is locked: a supervisor must not restart
	Config  = 4 // the configuration is wrong
)

// codeError is an error with an exit code.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }

func (e *codeError) Unwrap() error { return e.err }

// With returns err with an exit code.
func With(code int, err error) error { return &codeError{code, err} }

// Code returns the exit code of an error that is not nil.
func Code(err error) int {
	var e *codeError
	switch {
	case errors.As(err, &e):
		return e.code
	case errors.Is(err, hsm.ErrPIN):
		return PIN
	case errors.Is(err, hsm.ErrKey):
		return Config
	}
	return Fault
}
