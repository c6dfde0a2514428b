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
//
// The inner packages know no key: cryptoki calls the module, and signs through csign; ckr explains
// its return codes; pkcs11uri parses the URIs that name tokens and keys. Without cgo only the names
// of tokens and keys, and the errors, are left.
package hsm

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"hsm-signer/hsm/cryptoki"
)

// A Config names the token and the key, and how to use them.
type Config struct {
	Module  string    // path of the PKCS#11 module
	Library LibraryID // what the module must be; mostly empty
	Token   TokenID
	PIN     PINSource
	Key     KeyID

	MaxSessions      int           // most sessions at once; 0: 16, and up to 64 if calls are slow
	Timeout          time.Duration // longest wait for a session, and for one call; 0: 10 s
	AllowExtractable bool          // use the key even if it could leave the token

	// BeforeProbe is called before each test signature, to record it. On an error the signature is
	// not made ([ErrUnproven]). It may be nil, and must not call the key.
	BeforeProbe func(ctx context.Context, when ProbeTime) error

	// Signature are the options of test signatures, which should be those of certificates. nil:
	// SHA-256, with PKCS#1 v1.5 for an RSA key.
	Signature crypto.SignerOpts
}

// module returns the part of the configuration that concerns the module and the token.
func (c Config) module() cryptoki.Config {
	return cryptoki.Config{Module: c.Module, Library: c.Library, Token: c.Token, PIN: c.PIN,
		MaxSessions: c.MaxSessions, Timeout: c.Timeout}
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

// What names the module, the token and its user's PIN.
type (
	LibraryID = cryptoki.LibraryID
	Version   = cryptoki.Version
	TokenID   = cryptoki.TokenID
	Token     = cryptoki.Token
	PIN       = cryptoki.PIN
	PINSource = cryptoki.PINSource
	Sessions  = cryptoki.Sessions
)

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
	ErrPIN = cryptoki.ErrPIN
	// ErrKey: the token is there, but the key is the wrong one, or it could leave the token. Only a
	// person can help.
	ErrKey = errors.New("the key is not acceptable")
	// ErrUnavailable: the token is missing or does not respond. It may come back.
	ErrUnavailable = cryptoki.ErrUnavailable
	// ErrUnproven: the token is connected and holds the key, but no test signature may be made, so
	// it is not known whether it signs.
	ErrUnproven = errors.New("no test signature was made")
	// ErrHung: so many calls hang in the module that no more are made. Only another process can
	// help.
	ErrHung = cryptoki.ErrHung
)

type fault = cryptoki.Fault

// faultf returns a fault of the kind.
func faultf(kind error, format string, args ...any) error {
	return cryptoki.Faultf(kind, format, args...)
}

// unavailable returns the error for a call that failed in PKCS#11.
func unavailable(cause error, format string, args ...any) error {
	return cryptoki.Unavailable(cause, format, args...)
}

// Stats count what a [Key] did since it was made, and its sessions.
type Stats struct {
	Signatures  int64    // that were verified, test signatures among them
	Logins      int64    // calls of C_Login
	Connections int64    // that were made
	Initialised int64    // calls of C_Initialize
	Abandoned   int64    // calls that did not return in time
	Hanging     int64    // of these, those that have not returned yet
	Sessions    Sessions // all are 0 while there is no connection
}
