// Package cryptoki calls a PKCS#11 module, whose API the standard calls Cryptoki.
//
// Duty: load and initialise the module, find the token, log in, keep sessions open, and make calls
// in them. It does not know which key is right, and it retries nothing.
//
// Contract: no caller waits longer than a timeout for a call. A call that does not return in time
// is abandoned ([AbandonedError]), which costs one thread, and no other call is made in its
// session. All keys of a process share a module ([User]): it is not finalised while a call is in
// flight, and then each of the others must connect again. A login is tried once for each
// [Connection], never with a PIN that the token has rejected, nor while an abandoned one may still
// count as a wrong PIN. Handles and sessions do not outlive their connection. No error contains the
// PIN.
//
// Without cgo no module can be called: only the names and the errors are left, for the commands
// that need no token.
package cryptoki

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// A Config names a module, a token and the PIN of its user.
type Config struct {
	Module  string    // path of the PKCS#11 module
	Library LibraryID // what the module must be; mostly empty
	Token   TokenID
	PIN     PINSource

	MaxSessions int           // most sessions that may sign at once; 0: as many as signatures need
	Timeout     time.Duration // longest wait for a session, and for one call
}

// A Version is a CK_VERSION.
type Version struct{ Major, Minor uint8 }

// A LibraryID is what the module must return from C_GetInfo. Empty fields match anything.
type LibraryID struct {
	Manufacturer, Description string
	Version                   *Version
}

// A TokenID names a token. Every field that is set must match; at least one must be set.
type TokenID struct {
	Slot             *uint // CK_SLOT_ID
	Label            string
	Serial           string
	Manufacturer     string
	Model            string
	SlotDescription  string
	SlotManufacturer string
}

// Given reports whether any field is set.
func (t TokenID) Given() bool { return t != (TokenID{}) }

// String describes the token as an operator would.
func (t TokenID) String() string {
	var s strings.Builder
	s.WriteString("token")
	if t.Slot != nil {
		fmt.Fprintf(&s, " in slot %d", *t.Slot)
	}
	for _, part := range []struct{ words, value string }{
		{"labelled", t.Label}, {"with serial number", t.Serial},
		{"by", t.Manufacturer}, {"of the model", t.Model},
		{"in the slot described as", t.SlotDescription}, {"in a slot by", t.SlotManufacturer},
	} {
		if part.value != "" {
			fmt.Fprintf(&s, " %s %q", part.words, part.value)
		}
	}
	return s.String()
}

// A Token describes a token in its own words (PKCS#11 v2.40, CK_TOKEN_INFO).
type Token struct {
	Label        string `json:"label"`
	Serial       string `json:"serial"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Hardware     string `json:"hardware"` // version
	Firmware     string `json:"firmware"` // version
}

// Sessions count the PKCS#11 sessions of a connection. Sessions in which calls hang are not
// counted.
type Sessions struct {
	Open  int // including the login session
	InUse int // of these, those that sign
	Most  int // that may sign at once, now
}

// A PIN is a user PIN. It does not show itself when printed.
type PIN string

// String hides the PIN.
func (PIN) String() string { return "(PIN)" }

// GoString hides the PIN.
func (PIN) GoString() string { return "(PIN)" }

// MarshalText hides the PIN.
func (PIN) MarshalText() ([]byte, error) { return []byte("(PIN)"), nil }

// A PINSource returns the current PIN. It is called before each login, and after the token rejected
// a PIN, to see whether there is another.
type PINSource func() (PIN, error)

// Fixed returns the source of a PIN that does not change.
func (p PIN) Fixed() PINSource { return func() (PIN, error) { return p, nil } }

// Waits after a login that may have failed because of the PIN; see [ckr.MayBePIN]. Tokens lock
// after three to ten.
const (
	FirstLoginRetry = 30 * time.Second
	LastLoginRetry  = 15 * time.Minute
)

// Counts count calls into a module. They outlive it.
type Counts struct {
	Logins      atomic.Int64 // calls of C_Login
	Initialised atomic.Int64 // calls of C_Initialize
	Abandoned   atomic.Int64 // calls that did not return in time
	Hanging     atomic.Int64 // of these, those that have not returned yet

	// FailedLate is of an abandoned login that returned: the PIN is or may be wrong.
	FailedLate atomic.Pointer[Fault]
}
