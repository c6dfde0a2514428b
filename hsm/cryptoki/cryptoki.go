// Package cryptoki calls a PKCS#11 module, whose API the standard calls Cryptoki.
//
// Duty: load and initialise the module, find the token, log in, keep sessions open, and make calls
// in them. It does not know which key is right, and it retries nothing.
//
// Contract: no caller waits longer than a timeout for a call. A call that does not return in time
// is abandoned ([AbandonedError]), which costs one thread, and no other call is made in its
// session. The module is not finalised while a call is in flight. A login is tried once for each
// [Connection], and never while an abandoned one may still count as a wrong PIN. Handles and
// sessions do not outlive their connection. No error contains the PIN.
package cryptoki

import (
	"sync/atomic"
	"time"
)

// A Config names a module, a token and the PIN of its user.
type Config struct {
	Module  string    // path of the PKCS#11 module
	Library LibraryID // what the module must be; mostly empty
	Token   TokenID
	PIN     PINSource

	MaxSessions int           // sessions that may sign at once
	Timeout     time.Duration // longest wait for a session, and for one call
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
