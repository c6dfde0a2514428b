package hsm

import (
	"errors"
	"slices"

	"github.com/miekg/pkcs11"
)

// is reports whether the error is this CKR code.
func is(err error, code uint) bool {
	var ckr pkcs11.Error
	return errors.As(err, &ckr) && ckr == pkcs11.Error(code)
}

// isPIN reports whether the token objects to the PIN.
func isPIN(err error) bool {
	for _, code := range []uint{
		pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE,
		pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_PIN_TOO_WEAK, pkcs11.CKR_USER_PIN_NOT_INITIALIZED,
	} {
		if is(err, code) {
			return true
		}
	}
	return false
}

// mayMeanPIN reports whether a login failed with a code that does not say why: some modules return it for a wrong PIN.
func mayMeanPIN(err error) bool {
	var ckr pkcs11.Error
	if !errors.As(err, &ckr) {
		return false
	}
	switch uint(ckr) {
	case pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_FUNCTION_REJECTED, pkcs11.CKR_ARGUMENTS_BAD:
		return true
	}
	return uint(ckr) >= pkcs11.CKR_VENDOR_DEFINED
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

// gone are the codes of rung newModule that say explicitly that the token or the module is gone. The
// others say nothing of the kind, and may be the fault of one call.
var gone = []pkcs11.Error{
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_DEVICE_REMOVED,
	pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
}

// retriesOnSession reports whether a signature is worth another try on another session of the same
// connection. The codes for lost sessions, logins and handles are not: what they belong to is gone,
// and an old handle may name another key.
func retriesOnSession(err error) bool {
	var ckr pkcs11.Error
	var keeper *keeperError
	var form *formError
	switch {
	case errors.As(err, &keeper):
		return false
	case errors.As(err, &form):
		return true
	case !errors.As(err, &ckr):
		return false
	}
	r := rungOf(err)
	return r == newSession || r == newModule && !slices.Contains(gone, ckr)
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
	case !errors.As(err, &ckr) || isPIN(err):
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
