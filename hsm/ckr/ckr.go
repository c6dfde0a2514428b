// Package ckr knows the return codes of PKCS#11: how far back one must go after each to go on,
// which of them are about the PIN, and what an operator does about them.
package ckr

import (
	"errors"
	"slices"

	"github.com/miekg/pkcs11"
)

// Is reports whether the error is this CKR code.
func Is(err error, code uint) bool {
	var ckr ckrError
	return errors.As(err, &ckr) && ckr == ckrError(code)
}

// IsPIN reports whether the token rejects the PIN.
func IsPIN(err error) bool {
	for _, code := range []uint{
		pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE,
		pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_PIN_TOO_WEAK,
		pkcs11.CKR_USER_PIN_NOT_INITIALIZED,
	} {
		if Is(err, code) {
			return true
		}
	}
	return false
}

// MayBePIN reports whether a login failed with a code that does not say why: some modules return
// such a code for a wrong PIN.
func MayBePIN(err error) bool {
	var ckr ckrError
	if !errors.As(err, &ckr) {
		return false
	}
	switch uint(ckr) {
	case pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_FUNCTION_REJECTED,
		pkcs11.CKR_ARGUMENTS_BAD:
		return true
	}
	return uint(ckr) >= pkcs11.CKR_VENDOR_DEFINED
}

// A Recovery is the step that must be taken after a fault before the next try.
type Recovery int

// The recovery steps, the smallest first.
const (
	// the token rejects the request itself, or the fault is not the token's
	None       Recovery = iota
	NewSession          // the session is used up; another one will do
	NewLogin            // login, sessions or handles are gone: log in and find the key again
	// the module or the device is gone: initialise the module again, with back-off
	NewModule
)

// recoveries are the codes whose step is not NewModule.
var recoveries = map[ckrError]Recovery{
	pkcs11.CKR_MECHANISM_PARAM_INVALID:   None,
	pkcs11.CKR_DATA_INVALID:              None,
	pkcs11.CKR_FUNCTION_NOT_SUPPORTED:    None,
	pkcs11.CKR_OPERATION_ACTIVE:          NewSession,
	pkcs11.CKR_OPERATION_NOT_INITIALIZED: NewSession,
	pkcs11.CKR_FUNCTION_CANCELED:         NewSession,
	pkcs11.CKR_BUFFER_TOO_SMALL:          NewSession,
	pkcs11.CKR_SESSION_HANDLE_INVALID:    NewLogin, // sessions and login go together
	pkcs11.CKR_SESSION_CLOSED:            NewLogin,
	pkcs11.CKR_SESSION_COUNT:             NewLogin,
	pkcs11.CKR_USER_NOT_LOGGED_IN:        NewLogin,
	pkcs11.CKR_OBJECT_HANDLE_INVALID:     NewLogin,
	pkcs11.CKR_KEY_HANDLE_INVALID:        NewLogin,
	// The handle may now name another object; if it does not, the test signature shows it.
	pkcs11.CKR_MECHANISM_INVALID:          NewLogin,
	pkcs11.CKR_DATA_LEN_RANGE:             NewLogin,
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: NewLogin,
	pkcs11.CKR_KEY_SIZE_RANGE:             NewLogin,
	pkcs11.CKR_KEY_TYPE_INCONSISTENT:      NewLogin,
}

// RecoveryFrom returns the recovery step after an error, and false if the error has no CKR code. An
// unknown code may mean anything, so it needs a new module. After a rejected PIN there is no step:
// it must not be tried again.
func RecoveryFrom(err error) (step Recovery, isCKR bool) {
	var code ckrError
	switch {
	case !errors.As(err, &code):
		return None, false
	case IsPIN(err):
		return None, true
	}
	step, known := recoveries[code]
	if !known {
		return NewModule, true
	}
	return step, true
}

// IsGone reports whether the code says that the token or the module is gone. The other codes that
// need a new module may be the fault of one call.
func IsGone(err error) bool {
	var code ckrError
	return errors.As(err, &code) && slices.Contains([]ckrError{
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
	}, code)
}
