package cryptoki

import (
	"errors"
	"fmt"
	"time"

	"hsm-signer/hsm/ckr"
)

// The kinds of errors from this package, for [errors.Is].
var (
	// ErrPIN: the token rejected the PIN, or trying it would be too dangerous. Only a person can
	// help: the PIN is not tried again until its source has another.
	ErrPIN = errors.New("the PIN was rejected")
	// ErrUnavailable: the token is missing or does not respond. It may come back.
	ErrUnavailable = errors.New("the token is not available")
	// ErrHung: so many calls hang in the module that no more are made. Only another process can
	// help.
	ErrHung = errors.New("the PKCS#11 module hangs")
	// ErrEnded: the connection has ended, since the module was initialised again for another key of
	// this process. Another connection can be made at once.
	ErrEnded = errors.New("the PKCS#11 module was initialised again for another key")
)

// A Fault is an error of one kind, with its own text.
type Fault struct {
	Kind  error
	Text  string
	Cause error // from PKCS#11, if that is the reason

	Refused PINSource // the PIN that the token rejected, if it did; a function does not print it
	Login   bool      // C_Login failed, but not because of the PIN
}

// Error returns the text.
func (f *Fault) Error() string { return f.Text }

// Unwrap returns the kind and the cause.
func (f *Fault) Unwrap() []error { return []error{f.Kind, f.Cause} }

// Faultf returns a fault of the kind, without a cause from PKCS#11.
func Faultf(kind error, format string, args ...any) error {
	return &Fault{Kind: kind, Text: fmt.Sprintf(format, args...)}
}

// Unavailable returns the error for a call that failed in PKCS#11. An expired PIN may show as late
// as at a signature.
func Unavailable(cause error, format string, args ...any) error {
	kind := ErrUnavailable
	if ckr.IsPIN(cause) {
		kind = ErrPIN
	}
	return &Fault{Kind: kind, Text: fmt.Sprintf(format, args...) + ": " + ckr.Explain(cause),
		Cause: cause}
}

// LoginFault returns the error for a failed login: the token rejected the PIN, or did not get to
// check it.
func LoginFault(pin PIN, token TokenID, err error) *Fault {
	if ckr.IsPIN(err) {
		return &Fault{Kind: ErrPIN, Refused: pin.Fixed(), Cause: err, Text: fmt.Sprintf(
			"the %s rejected the PIN: %s; correct PKCS11_PIN or PKCS11_PIN_FILE before you "+
				"start hsm-signer again: tokens lock after a few tries", token, ckr.Explain(err))}
	}
	f := &Fault{Kind: ErrUnavailable, Login: true, Cause: err,
		Text: fmt.Sprintf("log in to the %s: %s", token, ckr.Explain(err))}
	if ckr.MayBePIN(err) {
		f.Text += fmt.Sprintf("; some modules return this for a wrong PIN, so the next attempt "+
			"is at least %s away", FirstLoginRetry)
	}
	return f
}

// An AbandonedError is the error of a call that did not return in time.
type AbandonedError struct {
	Call    string
	Timeout time.Duration // the longest wait
	// Early is why the caller could not wait for the timeout; nil: it did, and the token is at
	// fault.
	Early error
}

// Error names the call.
func (e *AbandonedError) Error() string {
	if e.Early != nil {
		return fmt.Sprintf("stopped waiting for %s: %v", e.Call, e.Early)
	}
	return fmt.Sprintf("%s did not return within %s (PKCS11_TIMEOUT): the token, its daemon or "+
		"the network to it hangs",
		e.Call, e.Timeout)
}

// A LoginSessionError is a fault in the login session: only another connection has another one.
type LoginSessionError struct{ error }

// Unwrap returns the fault.
func (e *LoginSessionError) Unwrap() error { return e.error }
