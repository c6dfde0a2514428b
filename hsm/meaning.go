package hsm

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

// A meaning is what a CKR code means here, and what to do about it. Where there is nothing to do but
// wait, it says so.
type meaning struct{ is, do string }

// What to do about more than one code.
const (
	doCome    = "it is tried again until it comes back: see to the token, its daemon and the network to it"
	doNothing = "nothing needs to be done: the token is logged in to anew; if it happens often, look for idle timeouts, and for another application that logs out"
	doReport  = "it is tried again with a fresh module; if it stays, run \"hsm-signer check\", and report both with the module's name and version"
	doOwnTool = "make the key with the token's own tool, not extractable, and certify it with --use-existing-key"
)

// meanings has every code that the functions which are called here may answer (PKCS#11 v2.40, section 5).
var meanings = map[uint]meaning{
	pkcs11.CKR_PIN_INCORRECT:            {"the PIN is wrong", "compare it with where it comes from, and log in by hand once, which sets the token's count of wrong PINs back"},
	pkcs11.CKR_PIN_INVALID:              {"the PIN has characters that the token does not take", "look for a stray space or newline in it, and for the form that the token wants"},
	pkcs11.CKR_PIN_LEN_RANGE:            {"the PIN is too short or too long for the token", "look for a stray space or newline in it, and for the form that the token wants"},
	pkcs11.CKR_PIN_EXPIRED:              {"the PIN has expired, or the first one was never changed", "set a new one with the token's own tool, and then in PKCS11_PIN_FILE"},
	pkcs11.CKR_PIN_LOCKED:               {"the PIN is locked", "have the security officer set a new one"},
	pkcs11.CKR_PIN_TOO_WEAK:             {"the PIN is too weak for the token", "set a better one with the token's own tool, and then in PKCS11_PIN_FILE"},
	pkcs11.CKR_USER_PIN_NOT_INITIALIZED: {"the token has no user PIN yet", "have the security officer set one"},
	pkcs11.CKR_USER_TYPE_INVALID:        {"the token has no ordinary user (CKU_USER)", "name a token that was initialised for use by applications"},

	pkcs11.CKR_USER_ALREADY_LOGGED_IN:         {"somebody is logged in already in this process", "nothing needs to be done"},
	pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN: {"the security officer is logged in, and the user cannot be meanwhile", "end that application; it is tried again"},
	pkcs11.CKR_USER_TOO_MANY_TYPES:            {"more users are logged in than the token bears at once", "end the other applications; it is tried again"},
	pkcs11.CKR_SESSION_READ_WRITE_SO_EXISTS:   {"the security officer is logged in, and the user cannot be meanwhile", "end that application; it is tried again"},
	pkcs11.CKR_USER_NOT_LOGGED_IN:             {"the login is gone: the token was restarted", doNothing},

	pkcs11.CKR_SLOT_ID_INVALID:              {"the module has no such slot any more", "slots are numbered anew when tokens come and go: name the token by PKCS11_TOKEN_LABEL or PKCS11_TOKEN_SERIAL in the place of PKCS11_SLOT"},
	pkcs11.CKR_TOKEN_NOT_PRESENT:            {"the token is not in its slot", "see to its card, cable, partition or HA group; it is tried again until it comes back"},
	pkcs11.CKR_TOKEN_NOT_RECOGNIZED:         {"the module does not know the token that is in its slot", "see whether it is initialised, and whether this module is the right one for it; it is tried again until it comes back"},
	pkcs11.CKR_TOKEN_WRITE_PROTECTED:        {"the token is write-protected", "only the ceremony writes: hold it with a user or on a token that may"},
	pkcs11.CKR_DEVICE_ERROR:                 {"the device, its daemon or the network to it reports a fault", doCome},
	pkcs11.CKR_DEVICE_REMOVED:               {"the device was removed", doCome},
	pkcs11.CKR_DEVICE_MEMORY:                {"the device has no memory left", "close other applications' sessions, or remove objects that nobody needs; a TPM wants a resource manager (tpm2-abrmd); it is tried again"},
	pkcs11.CKR_HOST_MEMORY:                  {"the module found no memory on this machine", "give the process more memory (its limit, or that of its container); it is tried again"},
	pkcs11.CKR_GENERAL_ERROR:                {"the module reports a fault without saying which", "see the module's own log, its configuration and its daemon; it is tried again until it comes back"},
	pkcs11.CKR_FUNCTION_FAILED:              {"the module could not do it, without saying why", "see the module's own log, its configuration and its daemon; it is tried again until it comes back"},
	pkcs11.CKR_FIPS_SELF_TEST_FAILED:        {"the token failed its own self-test (FIPS 140), and does nothing any more", "restart it; if that does not help it is broken: ask its vendor"},
	pkcs11.CKR_LIBRARY_LOAD_FAILED:          {"the module could not load a library that it needs", "install it (see: ldd, with the path of the module)"},
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:     {"the module was shut down", "it is initialised anew; if that does not help, restart this process"},
	pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED: {"the module is initialised already", "nothing needs to be done"},
	pkcs11.CKR_NEED_TO_CREATE_THREADS:       {"the module must make threads of its own, and says that it may not", "see the module's own configuration"},
	pkcs11.CKR_CANT_LOCK:                    {"the module cannot be used by several threads", "ask its vendor for one that can: signatures are made side by side here"},
	pkcs11.CKR_MUTEX_BAD:                    {"the module's own locks are in disorder", doReport},
	pkcs11.CKR_MUTEX_NOT_LOCKED:             {"the module's own locks are in disorder", doReport},

	pkcs11.CKR_SESSION_COUNT:                  {"the token has no session left", "lower PKCS11_MAX_SESSIONS, or find out who else holds sessions; it is waited for one"},
	pkcs11.CKR_SESSION_HANDLE_INVALID:         {"the session is gone: the token was restarted", doNothing},
	pkcs11.CKR_SESSION_CLOSED:                 {"the session was closed: the token was restarted", doNothing},
	pkcs11.CKR_SESSION_READ_ONLY:              {"the session may only read", "only the ceremony writes: hold it with a user or on a token that may"},
	pkcs11.CKR_SESSION_READ_ONLY_EXISTS:       {"a session that may only read is open, and the security officer cannot log in meanwhile", "end that application"},
	pkcs11.CKR_SESSION_PARALLEL_NOT_SUPPORTED: {"the module asks for sessions of a kind that PKCS#11 gave up", "use a newer version of the module"},
	pkcs11.CKR_OPERATION_ACTIVE:               {"the session is still at another signature", "nothing needs to be done: another session signs, and if the fault stays the token is logged in to anew"},
	pkcs11.CKR_OPERATION_NOT_INITIALIZED:      {"the session has forgotten the signature that it was at", "nothing needs to be done: another session signs, and if the fault stays the token is logged in to anew"},
	pkcs11.CKR_FUNCTION_CANCELED:              {"the token gave the call up", "nothing needs to be done: another session signs; if it happens often, look at the token's own timeouts"},
	pkcs11.CKR_CANCEL:                         {"the token gave the call up", "nothing needs to be done: it is tried again; if it happens often, look at the token's own timeouts"},
	pkcs11.CKR_BUFFER_TOO_SMALL:               {"the module has more to say than it said before", doReport},
	pkcs11.CKR_ARGUMENTS_BAD:                  {"the module does not take what it was given", doReport},

	pkcs11.CKR_OBJECT_HANDLE_INVALID:      {"the key is gone from the token, or the token was restarted", "it is looked for again; if it stays away, find out who deleted it, and restore the token's backup"},
	pkcs11.CKR_KEY_HANDLE_INVALID:         {"the key is gone from the token, or the token was restarted", "it is looked for again; if it stays away, find out who deleted it, and restore the token's backup"},
	pkcs11.CKR_KEY_CHANGED:                {"the key is not the one that the operation began with", doReport},
	pkcs11.CKR_KEY_NEEDED:                 {"the operation wants a key that it was not given", doReport},
	pkcs11.CKR_KEY_TYPE_INCONSISTENT:      {"the key is of another type than the CA certificate's", "name the key and the certificate that belong together: CA_KEY_LABEL, CA_KEY_ID, CA_CERT_FILE"},
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: {"the key may not sign (CKA_SIGN)", "name one that may, or make one: hsm-signer ca create"},
	pkcs11.CKR_KEY_SIZE_RANGE:             {"the token does not take keys of this size", "choose another --key-type"},
	pkcs11.CKR_MECHANISM_INVALID:          {"the token does not know the mechanism, or not for this key, or its mode (FIPS) forbids it", "choose another SIGNATURE_ALGORITHM; \"pkcs11-tool -M\" lists what it knows"},
	pkcs11.CKR_MECHANISM_PARAM_INVALID:    {"the token does not know the mechanism with this hash or salt", "choose another SIGNATURE_ALGORITHM"},
	pkcs11.CKR_DATA_INVALID:               {"the token does not sign such a digest", "choose another SIGNATURE_ALGORITHM"},
	pkcs11.CKR_DATA_LEN_RANGE:             {"the token does not sign a digest of this length with this key", "choose another SIGNATURE_ALGORITHM"},
	pkcs11.CKR_FUNCTION_NOT_SUPPORTED:     {"the module does not have this function", "see whether it is the right one for the token, and in which version it has it"},
	pkcs11.CKR_FUNCTION_REJECTED:          {"the token's own rules, or a person asked by it, refused the signature", "allow the user to sign with the key, without being asked each time"},
	pkcs11.CKR_ACTION_PROHIBITED:          {"the token's own rules forbid it", "allow it to the user, with the token's own tool"},

	pkcs11.CKR_ATTRIBUTE_SENSITIVE:     {"the token does not tell this attribute", "ask its vendor for a version of the module that does: whether the key can leave must be known"},
	pkcs11.CKR_ATTRIBUTE_TYPE_INVALID:  {"the token does not know an attribute that the key is to have", doOwnTool},
	pkcs11.CKR_ATTRIBUTE_VALUE_INVALID: {"the token does not take an attribute that the key is to have", "choose another --key-type, or " + doOwnTool},
	pkcs11.CKR_ATTRIBUTE_READ_ONLY:     {"the token lets nobody set an attribute that the key is to have", doOwnTool},
	pkcs11.CKR_TEMPLATE_INCOMPLETE:     {"the token wants to know more of the key that it is to make", doOwnTool},
	pkcs11.CKR_TEMPLATE_INCONSISTENT:   {"the token does not make a key that only signs and never leaves, or not this way", doOwnTool},
	pkcs11.CKR_DOMAIN_PARAMS_INVALID:   {"the token does not know the curve", "choose another --key-type"},
	pkcs11.CKR_CURVE_NOT_SUPPORTED:     {"the token does not know the curve", "choose another --key-type"},
	pkcs11.CKR_PUBLIC_KEY_INVALID:      {"the token holds a public key that is none", "make the key anew"},
	pkcs11.CKR_RANDOM_NO_RNG:           {"the token has no source of random numbers", "make the key on one that has: it is no token for a CA"},
}

// explain says what a CKR code means and what to do about it, and then its name. What is not in the
// standard, or nothing that is called here should answer, is looked up where it comes from.
func explain(err error) string {
	var ckr pkcs11.Error
	if !errors.As(err, &ckr) {
		return err.Error()
	}
	m, known := meanings[uint(ckr)]
	switch {
	case known:
	case uint(ckr) >= pkcs11.CKR_VENDOR_DEFINED:
		m = meaning{"the module answers with a code of its vendor's", "look it up in the vendor's manual and the module's own log; it is tried again with a fresh module"}
	default:
		m = meaning{"the module answers with a code that it should not here", doReport}
	}
	return fmt.Sprintf("%s (%s): %s", m.is, nameOf(ckr), m.do)
}

// unnamed are the names that the binding does not have.
var unnamed = map[pkcs11.Error]string{
	pkcs11.CKR_ACTION_PROHIBITED: "CKR_ACTION_PROHIBITED", pkcs11.CKR_CURVE_NOT_SUPPORTED: "CKR_CURVE_NOT_SUPPORTED",
	pkcs11.CKR_FIPS_SELF_TEST_FAILED: "CKR_FIPS_SELF_TEST_FAILED", pkcs11.CKR_LIBRARY_LOAD_FAILED: "CKR_LIBRARY_LOAD_FAILED",
	pkcs11.CKR_PIN_TOO_WEAK: "CKR_PIN_TOO_WEAK", pkcs11.CKR_PUBLIC_KEY_INVALID: "CKR_PUBLIC_KEY_INVALID",
}

// nameOf is the code's name in the standard, or its number where it has none.
func nameOf(code pkcs11.Error) string {
	if name, known := unnamed[code]; known {
		return name
	}
	if text := code.Error(); strings.Contains(text, "CKR_") {
		return text[strings.Index(text, "CKR_"):]
	}
	return fmt.Sprintf("code 0x%08X", uint(code))
}
