package ckr

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsm-signer/internal/must"
)

// mayAnswer are the codes of the functions that are called here, by PKCS#11 v2.40, section 5,
// without those that every function may answer.
var mayAnswer = map[string][]uint{
	"every function": {
		pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_FUNCTION_FAILED,
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
		pkcs11.CKR_ARGUMENTS_BAD, pkcs11.CKR_FUNCTION_NOT_SUPPORTED,
	},
	"every function with a session": {
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_DEVICE_ERROR,
		pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_PIN_EXPIRED,
	},
	"C_Initialize": {pkcs11.CKR_CANT_LOCK, pkcs11.CKR_NEED_TO_CREATE_THREADS,
		pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED, pkcs11.CKR_MUTEX_BAD, pkcs11.CKR_MUTEX_NOT_LOCKED},
	"C_GetSlotList": {pkcs11.CKR_BUFFER_TOO_SMALL},
	"C_GetSlotInfo": {pkcs11.CKR_SLOT_ID_INVALID},
	"C_GetTokenInfo": {pkcs11.CKR_SLOT_ID_INVALID, pkcs11.CKR_TOKEN_NOT_PRESENT,
		pkcs11.CKR_TOKEN_NOT_RECOGNIZED},
	"C_OpenSession": {
		pkcs11.CKR_SESSION_COUNT, pkcs11.CKR_SESSION_PARALLEL_NOT_SUPPORTED,
		pkcs11.CKR_SESSION_READ_WRITE_SO_EXISTS,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
		pkcs11.CKR_TOKEN_WRITE_PROTECTED,
	},
	"C_Login": {
		pkcs11.CKR_FUNCTION_CANCELED, pkcs11.CKR_OPERATION_NOT_INITIALIZED,
		pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_LOCKED,
		pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_TOO_WEAK,
		pkcs11.CKR_SESSION_READ_ONLY_EXISTS,
		pkcs11.CKR_USER_ALREADY_LOGGED_IN, pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN,
		pkcs11.CKR_USER_PIN_NOT_INITIALIZED,
		pkcs11.CKR_USER_TOO_MANY_TYPES, pkcs11.CKR_USER_TYPE_INVALID,
	},
	"C_FindObjectsInit": {pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID},
	"C_GetAttributeValue": {pkcs11.CKR_ATTRIBUTE_SENSITIVE, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID,
		pkcs11.CKR_BUFFER_TOO_SMALL, pkcs11.CKR_OBJECT_HANDLE_INVALID},
	"C_SignInit": {
		pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_HANDLE_INVALID,
		pkcs11.CKR_KEY_SIZE_RANGE, pkcs11.CKR_KEY_TYPE_INCONSISTENT,
		pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID,
		pkcs11.CKR_FUNCTION_CANCELED,
	},
	"C_Sign": {
		pkcs11.CKR_BUFFER_TOO_SMALL, pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE,
		pkcs11.CKR_FUNCTION_CANCELED,
		pkcs11.CKR_FUNCTION_REJECTED, pkcs11.CKR_OPERATION_NOT_INITIALIZED,
	},
	"C_GenerateKeyPair": {
		pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID,
		pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_CURVE_NOT_SUPPORTED,
		pkcs11.CKR_DOMAIN_PARAMS_INVALID, pkcs11.CKR_MECHANISM_INVALID,
		pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_SESSION_READ_ONLY,
		pkcs11.CKR_TEMPLATE_INCOMPLETE, pkcs11.CKR_TEMPLATE_INCONSISTENT,
		pkcs11.CKR_TOKEN_WRITE_PROTECTED, pkcs11.CKR_RANDOM_NO_RNG,
	},
}

// Every code that a user can cause says what it means here and what to do, and is named.
func TestCodesAreExplained(t *testing.T) {
	for function, codes := range mayAnswer {
		for _, code := range codes {
			h := helps[pkcs11.Error(code)]
			text := Explain(fmt.Errorf("wrapped: %w", pkcs11.Error(code)))
			whole := h.means + " (" + Name(pkcs11.Error(code)) + "): " + h.do
			if h.means == "" || h.do == "" || text != whole || !strings.Contains(text, "(CKR_") {
				t.Errorf("%s may answer %s, which is explained as %q", function,
					pkcs11.Error(code), text)
			}
		}
	}
	for code, words := range map[uint]string{
		0x80000001:                        "its vendor's (code 0x80000001): look it up",
		pkcs11.CKR_WRAPPED_KEY_INVALID:    "should not here (CKR_WRAPPED_KEY_INVALID): ",
		pkcs11.CKR_SESSION_HANDLE_INVALID: "was restarted",
	} {
		if text := Explain(pkcs11.Error(code)); !strings.Contains(text, words) {
			t.Errorf("%x is explained as %q", code, text)
		}
	}
}

// The manual explains only codes that are explained here, and all that end the process.
func TestCodesOfTheManual(t *testing.T) {
	manual, err := os.ReadFile("../../docs/hsm.md")
	must.OK(t, err)
	_, table, found := strings.Cut(string(manual), "\n## At 3 a.m.\n")
	if !found {
		t.Fatal("the manual has no such section")
	}
	var said []string
	for _, name := range regexp.MustCompile("`(CKR_[A-Z_]+)`").FindAllStringSubmatch(table, -1) {
		said = append(said, name[1])
	}
	var known []string
	for code := range helps {
		name := Name(code)
		known = append(known, name)
		if IsPIN(code) && !slices.Contains(said, name) {
			t.Errorf("the manual does not have %s", name)
		}
	}
	for _, name := range said {
		if !slices.Contains(known, name) {
			t.Errorf("the manual has %s, which is not explained", name)
		}
	}
}
