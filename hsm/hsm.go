// Package hsm holds the key.
//
// Duty: sign with the CA's private key, which stays in a PKCS#11 token; check that it cannot leave;
// find it again after the token was gone; and, for the ceremony alone, create a key in the token.
//
// Contract: a [Key] never signs with another key than the one whose public half it was given.
// Before it signs on a new connection it makes a test signature, and it verifies each signature.
// Each test signature is announced first ([Config.BeforeProbe]); one that cannot be announced is
// not made. A PIN is tried once: a Key never retries a PIN that the token rejected. Handles and
// sessions do not outlive their connection. No caller waits longer than a timeout for a call into
// the module, and the module is not finalised while a call is in flight. No error and no log line
// contains the PIN.
package hsm

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"hsm-signer/hsm/ckr"
)

// A Config names the token and the key, and how to use them.
type Config struct {
	Module  string    // path of the PKCS#11 module
	Library LibraryID // what the module must be; mostly empty
	Token   TokenID
	PIN     PINSource
	Key     KeyID

	MaxSessions      int           // sessions at once; 0: 16, or what the token allows
	Timeout          time.Duration // longest wait for a session, and for one call; 0: 10 s
	AllowExtractable bool          // use the key even if it could leave the token

	// BeforeProbe is called before each test signature, to record it. On an error the signature is
	// not made ([ErrUnproven]). It may be nil, and must not call the key.
	BeforeProbe func(ctx context.Context, when ProbeTime) error

	// Signature are the options of test signatures, which should be those of certificates. nil:
	// SHA-256, with PKCS#1 v1.5 for an RSA key.
	Signature crypto.SignerOpts
}

// A KeyID names a key in a token. Every field that is set must match; at least one must be set.
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

// A PINSource returns the current PIN. It is called before each login, and after the token rejected
// a PIN, to see whether there is another.
type PINSource func() (PIN, error)

// Fixed returns the source of a PIN that does not change.
func (p PIN) Fixed() PINSource { return func() (PIN, error) { return p, nil } }

// A ProbeTime says when a test signature is made.
type ProbeTime string

// When test signatures are made.
const (
	ProbeBegin ProbeTime = "begin" // on a new connection to the token
	ProbeReady ProbeTime = "ready" // when someone asks whether the token can sign
)

// ProbeText is the text of test signatures. It is never a caller's.
const ProbeText = "hsm-signer: test signature"

// The kinds of errors from this package, for [errors.Is].
var (
	// ErrPIN: the token rejected the PIN, or trying it would be too dangerous. Only a person can
	// help: the PIN is not tried again until its source has another.
	ErrPIN = errors.New("the PIN was rejected")
	// ErrKey: the token is there, but the key is the wrong one, or it could leave the token. Only a
	// person can help.
	ErrKey = errors.New("the key is not acceptable")
	// ErrUnavailable: the token is missing or does not respond. It may come back.
	ErrUnavailable = errors.New("the token is not available")
	// ErrUnproven: the token is connected and holds the key, but no test signature may be made, so
	// it is not known whether it signs.
	ErrUnproven = errors.New("no test signature was made")
	// ErrHung: so many calls hang in the module that no more are made. Only another process can
	// help.
	ErrHung = errors.New("the PKCS#11 module hangs")
)

// A fault is an error of one of the kinds above, with its own text.
type fault struct {
	kind  error
	text  string
	cause error // from PKCS#11, if that is the reason

	refused PINSource // the PIN that the token rejected, if it did; a function does not print it
	login   bool      // C_Login failed, but not because of the PIN
}

func (f *fault) Error() string   { return f.text }
func (f *fault) Unwrap() []error { return []error{f.kind, f.cause} }

func faultf(kind error, format string, args ...any) error {
	return &fault{kind: kind, text: fmt.Sprintf(format, args...)}
}

// unavailable returns the error for a call that failed in PKCS#11. An expired PIN may show as late
// as at a signature.
func unavailable(cause error, format string, args ...any) error {
	kind := ErrUnavailable
	if ckr.IsPIN(cause) {
		kind = ErrPIN
	}
	return &fault{kind: kind, text: fmt.Sprintf(format, args...) + ": " + ckr.Explain(cause),
		cause: cause}
}

// Stats count what a [Key] did since it was made, and its sessions.
type Stats struct {
	Signatures  int64 // that were verified, test signatures among them
	Logins      int64 // calls of C_Login
	Connections int64 // that were made
	Initialised int64 // calls of C_Initialize
	Abandoned   int64 // calls that did not return in time
	Hanging     int64 // of these, those that have not returned yet
	Sessions    Sessions
}

// Sessions count the PKCS#11 sessions of the connection; all are 0 while there is none. Sessions in
// which calls hang are not counted.
type Sessions struct {
	Open  int // including the login session
	InUse int // of these, those that sign
	Most  int // that may sign at once: MaxSessions, or fewer if the token allows fewer
}

type counts struct {
	signatures, logins, connections, initialised, abandoned, hanging atomic.Int64

	// of an abandoned login that returned: the PIN is or may be wrong
	failedLate atomic.Pointer[fault]
}
