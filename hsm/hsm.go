// Package hsm holds the key.
//
// Duty: sign with the CA's private key, which stays in a PKCS#11 token; prove
// that it cannot leave; find it again when the token comes back after it was
// gone; and, for the ceremony alone, have the token make a key.
//
// Contract: a [Key] never signs with a key other than the one whose public half
// it was given: before it signs on a new connection it makes a signature over a fixed text
// and verifies it, as it does each signature. Each of these test signatures is announced first
// ([Config.BeforeProbe]), and what is not to be announced is not made. A PIN is tried once; after the token refused it, it is not
// tried again by this Key. Handles and sessions do not outlive the connection that they
// belong to. Nobody waits longer than a timeout for a call into the module, and the module is not
// finalised while one is in flight. The PIN is in no error and no log line.
package hsm

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// Config says which token and which key, and how to use them.
type Config struct {
	Module  string    // path of the PKCS#11 library
	Library LibraryID // what it must say of itself; mostly nothing
	Token   TokenID
	PIN     PINSource
	Key     KeyID

	MaxSessions      int           // sessions at once; 0: 16, or what the token allows
	Timeout          time.Duration // longest wait for a session, and for one call; 0: 10 s
	AllowExtractable bool          // go on although the key could leave the token

	// BeforeProbe is called before each test signature, so that it can be recorded; on an error
	// it is not made ([ErrUnproven]). nil: nobody is told. It must not call the key.
	BeforeProbe func(ctx context.Context, when ProbeTime) error

	// Signature is what test signatures are made with; it should be what
	// certificates are. nil: SHA-256, with PKCS#1 v1.5 where the key is RSA.
	Signature crypto.SignerOpts
}

// KeyID names a key in a token. All that is given must match; at least one must be given.
type KeyID struct {
	Label string // CKA_LABEL
	ID    []byte // CKA_ID
}

// String describes the key as an operator would.
func (k KeyID) String() string {
	var s string
	if k.Label != "" {
		s += fmt.Sprintf(" labelled %q", k.Label)
	}
	if len(k.ID) > 0 {
		s += fmt.Sprintf(" with id %x", k.ID)
	}
	return "key" + s
}

// A PIN is a user PIN. It does not show itself when printed.
type PIN string

// String hides the PIN.
func (PIN) String() string { return "(PIN)" }

// GoString hides the PIN.
func (PIN) GoString() string { return "(PIN)" }

// MarshalText hides the PIN.
func (PIN) MarshalText() ([]byte, error) { return []byte("(PIN)"), nil }

// A PINSource returns the PIN as it is now. It is asked before each login, and after the token
// refused a PIN, to see whether there is another.
type PINSource func() (PIN, error)

// Fixed is the source of a PIN that does not change.
func (p PIN) Fixed() PINSource { return func() (PIN, error) { return p, nil } }

// A ProbeTime says when a test signature is made.
type ProbeTime string

// When test signatures are made.
const (
	ProbeBegin ProbeTime = "begin" // on a new connection to the token
	ProbeReady ProbeTime = "ready" // when someone asks whether the token can sign
)

// ProbeText is what a test signature is over; it is never a caller's.
const ProbeText = "hsm-signer: test signature"

// What an error from this package means; use [errors.Is].
var (
	// ErrPIN: the token refused the PIN, or it would be too dangerous to try
	// it. Nothing but a human can help: it is not tried again until its source has another.
	ErrPIN = errors.New("the PIN was refused")
	// ErrKey: the token is there, but the key is not the one that it
	// should be, or it could leave the token. Nothing but a human can help.
	ErrKey = errors.New("the key cannot be used")
	// ErrUnavailable: the token is missing or does not respond. It may come back.
	ErrUnavailable = errors.New("the token is not available")
	// ErrUnproven: the token is logged in to and holds the key, but no test signature may be made, so that it
	// is not known whether it signs.
	ErrUnproven = errors.New("no test signature was made")
	// ErrHung: so many calls hang in the module that no more are made. Only another process can
	// help.
	ErrHung = errors.New("the PKCS#11 module hangs")
)

// fault is an error of one of the kinds above, with its own text.
type fault struct {
	kind  error
	text  string
	cause error // what PKCS#11 said, if that was the reason

	refused PINSource // the PIN that the token refused, if that is what it is; a function does not show it
	login   bool      // C_Login failed, though not for the PIN
}

func (f *fault) Error() string   { return f.text }
func (f *fault) Unwrap() []error { return []error{f.kind, f.cause} }

func faultf(kind error, format string, args ...any) error {
	return &fault{kind: kind, text: fmt.Sprintf(format, args...)}
}

// unavailable is the fault of a call that PKCS#11 did not do. A PIN that has expired may show itself as late as
// at a signature.
func unavailable(cause error, format string, args ...any) error {
	kind := ErrUnavailable
	if isPIN(cause) {
		kind = ErrPIN
	}
	return &fault{kind: kind, text: fmt.Sprintf(format, args...) + ": " + explain(cause), cause: cause}
}

// Stats say what a [Key] did since it was made, and which sessions it has.
type Stats struct {
	Signatures  int64 // that were verified, test signatures among them
	Logins      int64 // calls of C_Login
	Connections int64 // made, including reconnections
	Initialised int64 // calls of C_Initialize
	Abandoned   int64 // calls that nobody waited for any more
	Hanging     int64 // of these, those that have not come back yet
	Sessions    Sessions
}

// Sessions are how many PKCS#11 sessions the connection has now; none while there is no connection. Those that
// calls hang in are given up, and no longer among them.
type Sessions struct {
	Open  int // with the one that keeps the login
	InUse int // of these, those that sign
	Most  int // that may sign at once: what [Config] says, or less where the token allows less
}

type counts struct {
	signatures, logins, connections, initialised, abandoned, hanging atomic.Int64

	failedLate atomic.Pointer[fault] // a login that was abandoned has come back: the PIN is wrong, or may be
}
