package ckr

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

// A help is what a code means for hsm-signer, and what to do about it. If hsm-signer recovers by
// itself, the help reports it.
type help struct{ means, do string }

// What to do about more than one code.
const (
	doCome    = "check the token, its daemon and the network to it; hsm-signer keeps retrying"
	doNothing = "no action needed: hsm-signer logs in again; if it happens often, look for " +
		"idle timeouts and for another application that logs out"
	doReport = "hsm-signer retries with a fresh module; if it persists, run \"hsm-signer " +
		"check\", and report both with the module's name and version"
	doPINForm = "look for a stray space or newline in it, and for the form that the token " +
		"needs"
	doOtherSession = "no action needed: another session signs; if the fault persists, hsm-signer " +
		"logs in again"
	doOwnTool = "make the key with the token's own tool, not extractable, and certify it with " +
		"--use-existing-key"
)

// helps has every code that the functions called here may return (PKCS#11 v2.40, section 5).
var helps = map[ckrError]help{
	pkcs11.CKR_PIN_INCORRECT: {
		"the PIN is wrong",
		"compare it with its source, and log in by hand once to reset the token's count of " +
			"wrong PINs",
	},
	pkcs11.CKR_PIN_INVALID:   {"the PIN has characters that the token does not accept", doPINForm},
	pkcs11.CKR_PIN_LEN_RANGE: {"the PIN is too short or too long for the token", doPINForm},
	pkcs11.CKR_PIN_EXPIRED: {
		"the PIN has expired, or the initial PIN was never changed",
		"set a new one with the token's own tool, then in PKCS11_PIN_FILE",
	},
	pkcs11.CKR_PIN_LOCKED: {"the PIN is locked", "have the security officer set a new one"},
	pkcs11.CKR_PIN_TOO_WEAK: {
		"the PIN is too weak for the token",
		"set a stronger one with the token's own tool, then in PKCS11_PIN_FILE",
	},
	pkcs11.CKR_USER_PIN_NOT_INITIALIZED: {
		"the token has no user PIN yet",
		"have the security officer set one",
	},
	pkcs11.CKR_USER_TYPE_INVALID: {
		"the token has no ordinary user (CKU_USER)",
		"name a token that was initialised for applications",
	},

	pkcs11.CKR_USER_ALREADY_LOGGED_IN: {"this process is already logged in", "no action needed"},
	pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN: {
		"the security officer is logged in, so the user cannot log in",
		"end that application; hsm-signer retries",
	},
	pkcs11.CKR_USER_TOO_MANY_TYPES: {
		"too many users are logged in",
		"end the other applications; hsm-signer retries",
	},
	pkcs11.CKR_SESSION_READ_WRITE_SO_EXISTS: {
		"the security officer is logged in, so the user cannot log in",
		"end that application; hsm-signer retries",
	},
	pkcs11.CKR_USER_NOT_LOGGED_IN: {"the login is gone: the token was restarted", doNothing},

	pkcs11.CKR_SLOT_ID_INVALID: {
		"the module no longer has this slot",
		"slot numbers change when tokens are added or removed: name the token by " +
			"PKCS11_TOKEN_LABEL or PKCS11_TOKEN_SERIAL instead of PKCS11_SLOT",
	},
	pkcs11.CKR_TOKEN_NOT_PRESENT: {
		"the token is not in its slot",
		"check its card, cable, partition or HA group; hsm-signer keeps retrying",
	},
	pkcs11.CKR_TOKEN_NOT_RECOGNIZED: {
		"the module does not recognise the token in its slot",
		"check that the token is initialised and that this is the right module for it; " +
			"hsm-signer keeps retrying",
	},
	pkcs11.CKR_TOKEN_WRITE_PROTECTED: {
		"the token is write-protected",
		"only the ceremony writes: use a user or a token that may write",
	},
	pkcs11.CKR_DEVICE_ERROR: {
		"the device, its daemon or the network to it reports a fault",
		doCome,
	},
	pkcs11.CKR_DEVICE_REMOVED: {"the device was removed", doCome},
	pkcs11.CKR_DEVICE_MEMORY: {
		"the device has no memory left",
		"close other applications' sessions, or remove unused objects; a TPM needs a resource " +
			"manager (tpm2-abrmd); hsm-signer retries",
	},
	pkcs11.CKR_HOST_MEMORY: {
		"the module ran out of memory on this machine",
		"raise the memory limit of the process or its container; hsm-signer retries",
	},
	pkcs11.CKR_GENERAL_ERROR: {
		"the module reports an unspecified fault",
		"check the module's own log, its configuration and its daemon; hsm-signer keeps retrying",
	},
	pkcs11.CKR_FUNCTION_FAILED: {
		"the call failed, and the module gives no reason",
		"check the module's own log, its configuration and its daemon; hsm-signer keeps retrying",
	},
	pkcs11.CKR_FIPS_SELF_TEST_FAILED: {
		"the token failed its FIPS 140 self-test and no longer works",
		"restart it; if that does not help, it is broken: ask its vendor",
	},
	pkcs11.CKR_LIBRARY_LOAD_FAILED: {
		"the module could not load a library that it needs",
		"install it (ldd MODULE lists what is missing)",
	},
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED: {
		"the module was shut down",
		"hsm-signer initialises it again; if that does not help, restart this process",
	},
	pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED: {
		"the module is already initialised",
		"no action needed",
	},
	pkcs11.CKR_NEED_TO_CREATE_THREADS: {
		"the module needs to create threads, and may not",
		"check the module's own configuration",
	},
	pkcs11.CKR_CANT_LOCK: {
		"the module does not support several threads",
		"ask its vendor for one that does: hsm-signer signs in parallel",
	},
	pkcs11.CKR_MUTEX_BAD:        {"the module's own locks are in an invalid state", doReport},
	pkcs11.CKR_MUTEX_NOT_LOCKED: {"the module's own locks are in an invalid state", doReport},

	pkcs11.CKR_SESSION_COUNT: {
		"the token has no session left",
		"lower PKCS11_MAX_SESSIONS, or find out what else holds sessions; hsm-signer waits for one",
	},
	pkcs11.CKR_SESSION_HANDLE_INVALID: {"the session is gone: the token was restarted", doNothing},
	pkcs11.CKR_SESSION_CLOSED: {"the session was closed: the token was restarted",
		doNothing},
	pkcs11.CKR_SESSION_READ_ONLY: {
		"the session is read-only",
		"only the ceremony writes: use a user or a token that may write",
	},
	pkcs11.CKR_SESSION_READ_ONLY_EXISTS: {
		"a read-only session is open, so the security officer cannot log in",
		"end that application",
	},
	pkcs11.CKR_SESSION_PARALLEL_NOT_SUPPORTED: {
		"the module requires parallel sessions, which PKCS#11 has removed",
		"use a newer version of the module",
	},
	pkcs11.CKR_OPERATION_ACTIVE: {
		"another signature is still active in the session",
		doOtherSession,
	},
	pkcs11.CKR_OPERATION_NOT_INITIALIZED: {
		"the session lost the signature in progress",
		doOtherSession,
	},
	pkcs11.CKR_FUNCTION_CANCELED: {
		"the token cancelled the call",
		"no action needed: another session signs; if it happens often, check the token's own " +
			"timeouts",
	},
	pkcs11.CKR_CANCEL: {
		"the token cancelled the call",
		"no action needed: hsm-signer retries; if it happens often, check the token's own timeouts",
	},
	pkcs11.CKR_BUFFER_TOO_SMALL: {"the module returned more data than it announced", doReport},
	pkcs11.CKR_ARGUMENTS_BAD:    {"the module rejected the arguments of the call", doReport},

	pkcs11.CKR_OBJECT_HANDLE_INVALID: {
		"the key is gone from the token, or the token was restarted",
		"hsm-signer looks for it again; if it stays missing, find out who deleted it, and " +
			"restore the token's backup",
	},
	pkcs11.CKR_KEY_HANDLE_INVALID: {
		"the key is gone from the token, or the token was restarted",
		"hsm-signer looks for it again; if it stays missing, find out who deleted it, and " +
			"restore the token's backup",
	},
	pkcs11.CKR_KEY_CHANGED: {"the key changed during the operation", doReport},
	pkcs11.CKR_KEY_NEEDED:  {"the operation needs a key", doReport},
	pkcs11.CKR_KEY_TYPE_INCONSISTENT: {
		"the key and the CA certificate have different types",
		"name a key and a certificate that belong together: CA_KEY_LABEL, CA_KEY_ID, CA_CERT_FILE",
	},
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: {
		"the key may not sign (CKA_SIGN)",
		"name one that may, or make one: hsm-signer ca create",
	},
	pkcs11.CKR_KEY_SIZE_RANGE: {
		"the token does not support keys of this size",
		"choose another --key-type",
	},
	pkcs11.CKR_MECHANISM_INVALID: {
		"the token does not support the mechanism, or not for this key, or its FIPS mode " +
			"forbids it",
		"choose another SIGNATURE_ALGORITHM; \"pkcs11-tool -M\" lists the mechanisms",
	},
	pkcs11.CKR_MECHANISM_PARAM_INVALID: {
		"the token does not support the mechanism with this hash or salt",
		"choose another SIGNATURE_ALGORITHM",
	},
	pkcs11.CKR_DATA_INVALID: {
		"the token does not sign this kind of digest",
		"choose another SIGNATURE_ALGORITHM",
	},
	pkcs11.CKR_DATA_LEN_RANGE: {
		"the token does not sign a digest of this length with this key",
		"choose another SIGNATURE_ALGORITHM",
	},
	pkcs11.CKR_FUNCTION_NOT_SUPPORTED: {
		"the module does not have this function",
		"check that it is the right module for the token, and which version has the function",
	},
	pkcs11.CKR_FUNCTION_REJECTED: {
		"the token's own rules, or a person whom it asked, refused the signature",
		"let the user sign with the key without being asked each time",
	},
	pkcs11.CKR_ACTION_PROHIBITED: {
		"the token's own rules forbid it",
		"allow it for the user, with the token's own tool",
	},

	pkcs11.CKR_ATTRIBUTE_SENSITIVE: {
		"the token does not reveal this attribute",
		"ask its vendor for a module that does: hsm-signer must know whether the key can leave " +
			"the token",
	},
	pkcs11.CKR_ATTRIBUTE_TYPE_INVALID: {
		"the token does not know an attribute that the key must have",
		doOwnTool,
	},
	pkcs11.CKR_ATTRIBUTE_VALUE_INVALID: {
		"the token does not accept an attribute that the key must have",
		"choose another --key-type, or " + doOwnTool,
	},
	pkcs11.CKR_ATTRIBUTE_READ_ONLY: {
		"the token does not allow setting an attribute that the key must have",
		doOwnTool,
	},
	pkcs11.CKR_TEMPLATE_INCOMPLETE: {"the token needs more attributes to make the key", doOwnTool},
	pkcs11.CKR_TEMPLATE_INCONSISTENT: {
		"the token does not make a key that only signs and cannot leave, or not this way",
		doOwnTool,
	},
	pkcs11.CKR_DOMAIN_PARAMS_INVALID: {
		"the token does not know the curve",
		"choose another --key-type",
	},
	pkcs11.CKR_CURVE_NOT_SUPPORTED: {
		"the token does not know the curve",
		"choose another --key-type",
	},
	pkcs11.CKR_PUBLIC_KEY_INVALID: {"the token holds an invalid public key", "make a new key"},
	pkcs11.CKR_RANDOM_NO_RNG: {
		"the token has no source of random numbers",
		"make the key on a token that has one",
	},
}

// Explain returns what a CKR code means, its name, and what to do about it. For an error without a
// code it returns the error's text.
func Explain(err error) string {
	var code ckrError
	if !errors.As(err, &code) {
		return err.Error()
	}
	h, known := helps[code]
	switch {
	case known:
	case uint(code) >= pkcs11.CKR_VENDOR_DEFINED:
		h = help{"the module returned a code of its vendor's", "look it up in the vendor's " +
			"manual and the module's own log; hsm-signer retries with a fresh module"}
	default:
		h = help{"the module returned a code that it should not here", doReport}
	}
	return fmt.Sprintf("%s (%s): %s", h.means, Name(code), h.do)
}

// unnamed are the names that the binding does not have.
var unnamed = map[ckrError]string{
	pkcs11.CKR_ACTION_PROHIBITED:     "CKR_ACTION_PROHIBITED",
	pkcs11.CKR_CURVE_NOT_SUPPORTED:   "CKR_CURVE_NOT_SUPPORTED",
	pkcs11.CKR_FIPS_SELF_TEST_FAILED: "CKR_FIPS_SELF_TEST_FAILED",
	pkcs11.CKR_LIBRARY_LOAD_FAILED:   "CKR_LIBRARY_LOAD_FAILED",
	pkcs11.CKR_PIN_TOO_WEAK:          "CKR_PIN_TOO_WEAK",
	pkcs11.CKR_PUBLIC_KEY_INVALID:    "CKR_PUBLIC_KEY_INVALID",
}

// Name returns the code's name in the standard, or its number if it has none.
func Name(code ckrError) string {
	if name, known := unnamed[code]; known {
		return name
	}
	if text := code.Error(); strings.Contains(text, "CKR_") {
		return text[strings.Index(text, "CKR_"):]
	}
	return fmt.Sprintf("code 0x%08X", uint(code))
}
