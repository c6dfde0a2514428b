package hsm

import (
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// is tells whether the error is this CKR code.
func is(err error, code uint) bool {
	var ckr pkcs11.Error
	return errors.As(err, &ckr) && ckr == pkcs11.Error(code)
}

// isPIN tells whether the token objects to the PIN.
func isPIN(err error) bool {
	for _, code := range []uint{
		pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE,
		pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_USER_PIN_NOT_INITIALIZED,
	} {
		if is(err, code) {
			return true
		}
	}
	return false
}

// A rung is how far one must go back after a fault to go on.
type rung int

// The ladder out of a fault, the shortest way first.
const (
	giveUp     rung = iota // the token objects to what it is asked, or the fault is no token's
	newSession             // this session is spent, another will do
	newLogin               // login, sessions or handles are gone: log in and find the key again
	newModule              // the module or what is behind it is gone: initialise it again, with backoff
)

// rungs are the codes that do not mean newModule.
var rungs = map[uint]rung{
	pkcs11.CKR_MECHANISM_PARAM_INVALID:   giveUp,
	pkcs11.CKR_DATA_INVALID:              giveUp,
	pkcs11.CKR_FUNCTION_NOT_SUPPORTED:    giveUp,
	pkcs11.CKR_OPERATION_ACTIVE:          newSession,
	pkcs11.CKR_OPERATION_NOT_INITIALIZED: newSession,
	pkcs11.CKR_FUNCTION_CANCELED:         newSession,
	pkcs11.CKR_BUFFER_TOO_SMALL:          newSession,
	pkcs11.CKR_SESSION_HANDLE_INVALID:    newLogin, // they go together
	pkcs11.CKR_SESSION_CLOSED:            newLogin,
	pkcs11.CKR_SESSION_COUNT:             newLogin,
	pkcs11.CKR_USER_NOT_LOGGED_IN:        newLogin,
	pkcs11.CKR_OBJECT_HANDLE_INVALID:     newLogin,
	pkcs11.CKR_KEY_HANDLE_INVALID:        newLogin,
	// The handle may have come to name another object; if it has not, the test signature shows it.
	pkcs11.CKR_MECHANISM_INVALID:          newLogin,
	pkcs11.CKR_DATA_LEN_RANGE:             newLogin,
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: newLogin,
	pkcs11.CKR_KEY_SIZE_RANGE:             newLogin,
	pkcs11.CKR_KEY_TYPE_INCONSISTENT:      newLogin,
}

// rungOf says how far one must go back after an error. A code that is not known may mean anything.
func rungOf(err error) rung {
	var ckr pkcs11.Error
	var hung *abandonedError
	var keeper *keeperError
	switch {
	case errors.As(err, &hung) && hung.early != nil:
		return giveUp // nothing is wrong with the token
	case hung != nil || errors.Is(err, ErrKey):
		return newLogin
	case !errors.As(err, &ckr):
		return giveUp
	}
	r, known := rungs[uint(ckr)]
	switch {
	case !known:
		return newModule
	case r == newSession && errors.As(err, &keeper):
		return newLogin
	}
	return r
}

// meanings says what a code means here and what to do about it.
var meanings = map[uint]string{
	pkcs11.CKR_PIN_INCORRECT:              "the PIN is wrong",
	pkcs11.CKR_PIN_INVALID:                "the PIN has characters that the token does not take",
	pkcs11.CKR_PIN_LEN_RANGE:              "the PIN is too short or too long for the token",
	pkcs11.CKR_PIN_EXPIRED:                "the PIN has expired: set a new one",
	pkcs11.CKR_PIN_LOCKED:                 "the PIN is locked: have the security officer set a new one",
	pkcs11.CKR_USER_PIN_NOT_INITIALIZED:   "the token has no user PIN yet: initialise it",
	pkcs11.CKR_TOKEN_NOT_PRESENT:          "the token is not in its slot",
	pkcs11.CKR_TOKEN_NOT_RECOGNIZED:       "the token is not recognised",
	pkcs11.CKR_DEVICE_ERROR:               "the device or its daemon reports a fault",
	pkcs11.CKR_DEVICE_REMOVED:             "the device was removed",
	pkcs11.CKR_DEVICE_MEMORY:              "the device has no memory left",
	pkcs11.CKR_SESSION_COUNT:              "the token has no session left: lower PKCS11_MAX_SESSIONS, or close other applications",
	pkcs11.CKR_SESSION_HANDLE_INVALID:     "the session is gone: the token was restarted",
	pkcs11.CKR_SESSION_CLOSED:             "the session was closed: the token was restarted",
	pkcs11.CKR_USER_NOT_LOGGED_IN:         "the login is gone: the token was restarted",
	pkcs11.CKR_OBJECT_HANDLE_INVALID:      "the key is gone from the token",
	pkcs11.CKR_KEY_HANDLE_INVALID:         "the key is gone from the token",
	pkcs11.CKR_MECHANISM_INVALID:          "the token does not know the mechanism: choose another SIGNATURE_ALGORITHM",
	pkcs11.CKR_KEY_TYPE_INCONSISTENT:      "the key is of another type than the CA certificate's",
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: "the key may not sign (CKA_SIGN)",
	pkcs11.CKR_KEY_SIZE_RANGE:             "the token does not take keys of this size",
	pkcs11.CKR_GENERAL_ERROR:              "the module reports a general fault; see its own log",
	pkcs11.CKR_FUNCTION_FAILED:            "the module could not do it; see its own log",
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:   "the module was shut down",
	pkcs11.CKR_TOKEN_WRITE_PROTECTED:      "the token is write-protected",
}

// explain returns the name and the meaning of a CKR code.
func explain(err error) string {
	var ckr pkcs11.Error
	if !errors.As(err, &ckr) {
		return err.Error()
	}
	if meaning, known := meanings[uint(ckr)]; known {
		return fmt.Sprintf("%s (%s)", meaning, ckr.Error())
	}
	return ckr.Error()
}
