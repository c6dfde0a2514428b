// Package rotation is the state machine of a change from one CA to the next.
//
// Duty: say which of two CAs signs and which roots are published in each phase; check the guards of
// a step from one phase to the next; read and write the state as annotations of the lease.
//
// Contract: nothing here is in touch with the token, the disk or the API server. A refused step is
// a value, [*Refusal], which names everything that is missing and until when. Steps lead to the
// next phase or to the one before, and never further. A state that breaks a rule is not read.
package rotation

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"time"
)

// A Phase is how far a rotation has come.
type Phase string

// The phases, in their order.
const (
	None      Phase = "none"      // there is no rotation: CA_CERT_FILE signs
	Announced Phase = "announced" // the roots of both are published; the former CA signs
	Trusted   Phase = "trusted"   // whatever trusts the former CA trusts both; the former CA signs
	Signing   Phase = "signing"   // the next CA signs
	Retired   Phase = "retired"   // the next CA signs; only its roots are published
)

// Phases are all of them, in their order.
var Phases = []Phase{None, Announced, Trusted, Signing, Retired}

// A Key names a CA: the SHA-256 of the SubjectPublicKeyInfo of its key. The zero Key names none.
type Key [sha256.Size]byte

// KeyOf returns the key of a CA's certificate.
func KeyOf(cert *x509.Certificate) Key { return sha256.Sum256(cert.RawSubjectPublicKeyInfo) }

// String returns the whole hash in hex.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// Short returns enough of the hash for people to tell two keys apart.
func (k Key) Short() string { return k.String()[:16] }

// MarshalText returns the hash in hex.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a hash in hex.
func (k *Key) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(k) {
		return fmt.Errorf("%q is not a SHA-256 in hex", text)
	}
	copy(k[:], raw)
	return nil
}

// Keys are those of a process: of CA_CERT_FILE and, unless it is zero, of NEXT_CA_CERT_FILE.
type Keys struct{ CA, Next Key }

// has reports whether the process has the key.
func (k Keys) has(key Key) bool { return k.CA == key || k.Next == key }

// A State is how a rotation stands. The zero State is that of a lease that says nothing.
type State struct {
	Phase Phase `json:"phase"`
	From  Key   `json:"from,omitzero"` // the CA that signed before
	To    Key   `json:"to,omitzero"`
	// when each phase was entered; zero: it is still to come. Trusted is the later of our time and
	// the API server's, by which pods are dated
	Announced time.Time `json:"announced,omitzero"`
	Trusted   time.Time `json:"trusted,omitzero"`
	Signing   time.Time `json:"signing,omitzero"`
	Retired   time.Time `json:"retired,omitzero"`
	// when the last step was decided on; each step is later than the one before
	Changed time.Time `json:"changed,omitzero"`
	// when the next CA ceased to sign, if it did: its certificates may still be in use
	Withdrawn time.Time `json:"withdrawn,omitzero"`
	// of the next CA, that were published when Trusted was entered; empty: none were
	Roots  RootSet `json:"roots,omitempty"`
	Reason string  `json:"reason,omitempty"` // of the last step, if somebody gave one
	Forced bool    `json:"forced,omitempty"` // the last step, against its guard
}

// Current returns the phase; that of the zero State is [None].
func (s State) Current() Phase {
	if s.Phase == "" {
		return None
	}
	return s.Phase
}

// Since returns when the present phase was entered; zero in [None].
func (s State) Since() time.Time {
	at := s.times()
	if i := slices.Index(Phases, s.Current()); i > 0 {
		return at[i-1]
	}
	return time.Time{}
}

// times are when the phases after None were entered, in their order.
func (s State) times() []time.Time {
	return []time.Time{s.Announced, s.Trusted, s.Signing, s.Retired}
}

// Ongoing reports whether a process with these keys is in the middle of a rotation: not before it
// and not after it.
func (s State) Ongoing(k Keys) bool {
	return s.Current() != None && !(s.Phase == Retired && s.To == k.CA)
}

// check returns an error if no sequence of steps leads to the state.
func (s State) check() error {
	entered := slices.Index(Phases, s.Phase)
	switch {
	case entered < 0:
		return fmt.Errorf("%q is not a phase", s.Phase)
	case entered > 0 && (s.From == Key{} || s.To == Key{}):
		return fmt.Errorf("the phase is %s, and a CA is not named", s.Phase)
	case entered > 0 && s.From == s.To:
		return fmt.Errorf("the phase is %s, and both CAs have the key %s", s.Phase, s.To.Short())
	}
	if s.Trusted.IsZero() && s.Roots != "" {
		return fmt.Errorf("the phase is %s, and there are roots of %s", s.Phase, Trusted)
	}
	before := time.Time{}
	for i, at := range s.times() {
		switch phase := Phases[i+1]; {
		case i < entered && at.IsZero():
			return fmt.Errorf("the phase is %s, and there is no time of %s", s.Phase, phase)
		case i < entered && at.Before(before):
			return fmt.Errorf("%s was entered before the phase that precedes it", phase)
		case i >= entered && !at.IsZero():
			return fmt.Errorf("the phase is %s, and there is a time of %s", s.Phase, phase)
		}
		before = at
	}
	return s.Roots.check()
}

// Signer returns the key that signs, in a process with these keys.
func (s State) Signer(k Keys) Key {
	switch s.Current() {
	case Announced, Trusted:
		return s.From
	case Signing, Retired:
		return s.To
	}
	return k.CA
}

// Publishes reports whether the roots of a process's CA, and of its next one, are published.
func (s State) Publishes(k Keys) (ca, next bool) {
	switch s.Current() {
	case None:
		return true, false
	case Retired:
		return s.To == k.CA, s.To != k.CA
	}
	return true, true
}

// Fits returns an error if a process with these keys lacks a CA that the phase needs. It must not
// sign then.
func (s State) Fits(k Keys) error {
	needed := []Key{s.From, s.To}
	switch s.Current() {
	case None:
		return nil
	case Retired:
		needed = needed[1:]
	}
	for _, key := range needed {
		if !k.has(key) {
			return fmt.Errorf("the rotation from the CA with the key %s to %s is in the phase %s, "+
				"and this process lacks the CA with the key %s: %s", s.From.Short(), s.To.Short(),
				s.Phase, key.Short(), s.remedy(k))
		}
	}
	return nil
}

// remedy says how a process with these keys gets what it lacks.
func (s State) remedy(k Keys) string {
	switch {
	case k.CA == s.From || s.Phase == Signing && k.CA == s.To:
		return "set NEXT_CA_CERT_FILE to its certificate"
	case s.Phase == Retired:
		return "set CA_CERT_FILE to its certificate; if you have replaced the CA by hand, run " +
			"\"hsm-signer ca rotate restore none\""
	}
	return "set CA_CERT_FILE and NEXT_CA_CERT_FILE to the certificates of both"
}

// String describes the state for people.
func (s State) String() string {
	if s.Current() == None {
		return "no rotation"
	}
	text := fmt.Sprintf("%s since %s, from the CA with the key %s to %s", s.Phase,
		s.Since().UTC().Format(time.RFC3339), s.From.Short(), s.To.Short())
	if s.Forced {
		text += "; forced: " + s.Reason
	}
	return text
}

// Restored returns the state that an operator confirms when the lease has lost it, for a process
// with these keys, and these roots of the next CA. All times are now, so that each guard begins
// again.
func Restored(phase Phase, k Keys, roots RootSet, now time.Time, reason string) (State, error) {
	now = now.UTC().Round(0)
	s := State{Phase: phase, Changed: now, Reason: reason}
	entered := slices.Index(Phases, phase)
	if entered < 0 {
		return s, fmt.Errorf("%q is not a phase", phase)
	}
	if phase == None {
		if k.Next != (Key{}) {
			s.From, s.To = k.CA, k.Next // for the record
		}
		return s, s.check()
	}
	if k.CA == (Key{}) || k.Next == (Key{}) {
		return s, fmt.Errorf("the phase %s needs both CAs: set CA_CERT_FILE and NEXT_CA_CERT_FILE",
			phase)
	}
	s.From, s.To = k.CA, k.Next
	for i, at := range []*time.Time{&s.Announced, &s.Trusted, &s.Signing, &s.Retired} {
		if i < entered {
			*at = now
		}
	}
	if !s.Trusted.IsZero() {
		s.Roots = roots
	}
	if phase == Announced || phase == Trusted { // the next CA may have signed
		s.Withdrawn = now
	}
	return s, s.check()
}
