package health

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
)

// An Issuer has the CA that certificates are issued under now.
type Issuer interface{ CA() *issuer.CA }

// A Journal reports whether it takes a new request.
type Journal interface{ State() error }

// A Witness makes the journal suspect, or does not.
type Witness interface{ Suspicion() error }

// A Phase is how a rotation of the CA stands.
type Phase interface {
	Unclear() error // why nothing may be signed
	// Summary describes a rotation that is under way; empty: there is none.
	Summary() string
}

// An OtherKey is the key of a rotation that does not sign now.
type OtherKey interface {
	// Fault returns why the key cannot sign. exists is false without a rotation.
	Fault() (exists bool, err error)
}

// Signing knows whether token, CA and journal can serve requests. Its exported fields must not
// change once it is in use; then it is safe for concurrent use.
type Signing struct {
	Token   Checked // [hsm.ErrUnproven]: it is connected, and the journal is not ready
	Other   OtherKey
	Issuer  Issuer
	Journal Journal
	Witness Witness
	Clock   Checked // of the API server; nil: pod certificates are not served
	Phase   Phase
	Standby bool // another process may lead and have the journal open, and this one stands by

	mu      sync.Mutex
	crowded time.Time // since when the journal has too many unfinished requests; zero if it has not
}

// Fit returns nil while token, CA and journal can serve requests. The clock is no part of it: other
// requests are answered without it, and if it is the API server's that is wrong, every replica
// finds the same.
func (h *Signing) Fit() error {
	now := time.Now()
	return errors.Join(h.tokenPart().Err, h.Issuer.CA().ValidAt(now), h.journalFit(now))
}

// parts returns the states of token, CA, journal, for pod certificates the clock, and of a rotation
// of the CA, if there is one. caNote is worth knowing of the CA.
func (h *Signing) parts(caNote string) []Part {
	ca := Part{Name: "ca", Err: h.Issuer.CA().ValidAt(time.Now()), Note: caNote}
	parts := []Part{h.tokenPart(), ca, h.journalPart()}
	if h.Clock != nil {
		parts = append(parts, Part{Name: "clock", Err: h.Clock.Fault()})
	}
	return append(parts, h.rotationPart()...)
}

// tokenPart returns the state of the token.
func (h *Signing) tokenPart() Part {
	err := h.Token.Fault()
	if errors.Is(err, hsm.ErrUnproven) {
		return Part{Name: "token", Note: err.Error()}
	}
	return Part{Name: "token", Err: err}
}

// otherRemarks returns the state of the key that does not sign now; nothing without a rotation.
func (h *Signing) otherRemarks() []Part {
	exists, err := h.Other.Fault()
	if !exists {
		return nil
	}
	return []Part{{Name: "other_ca", Err: err}}
}

// writeOther writes the state of the key that does not sign now, if there is one.
func (h *Signing) writeOther(w io.Writer, prefix string) {
	for _, remark := range h.otherRemarks() {
		state := "its key could sign"
		if remark.Err != nil {
			state = remark.Err.Error()
		}
		fmt.Fprintf(w, "%sthe CA that does not sign now: %s\n", prefix, state)
	}
}

// rotationPart returns the state of a rotation of the CA; nothing without one.
func (h *Signing) rotationPart() []Part {
	p := Part{Name: "rotation", Err: h.Phase.Unclear(), Note: h.Phase.Summary()}
	if p.Err == nil && p.Note == "" {
		return nil
	}
	return []Part{p}
}

// journalPart returns the state of the journal.
func (h *Signing) journalPart() Part {
	err := h.Journal.State()
	if h.Standby && errors.Is(err, journal.ErrLocked) {
		return Part{Name: "journal", Note: "this process stands by: " + err.Error()}
	}
	const runbook = " (docs/runbook.md: HSMSignerJournalRolledBack)"
	p := Part{Name: "journal", Err: err}
	if errors.Is(err, journal.ErrRolledBack) {
		p.Err = fmt.Errorf("%w; nothing is signed: find out why, then run \"hsm-signer audit "+
			"accept-rollback\"%s", err, runbook)
	}
	if suspected := h.Witness.Suspicion(); suspected != nil && err == nil {
		p.Note = suspected.Error() + runbook
	}
	return p
}

// letOthersLead is how long a controller with too many unfinished requests leaves the lease to
// another.
const letOthersLead = time.Minute

// journalFit returns nil if the journal can serve. With too many unfinished requests, and no other
// fault, this controller stands for election again after a while: where nobody else leads, it must
// lead itself to publish them.
func (h *Signing) journalFit(now time.Time) error {
	err := h.Journal.State()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !onlyUnfinished(err) {
		h.crowded = time.Time{}
		return err
	}
	if h.crowded.IsZero() {
		h.crowded = now
	}
	if now.Sub(h.crowded)%(2*letOthersLead) < letOthersLead {
		return err
	}
	return nil
}

func onlyUnfinished(err error) bool {
	faults := []error{journal.ErrBroken, journal.ErrDamaged, journal.ErrFull, journal.ErrSlow,
		journal.ErrClosed}
	return errors.Is(err, journal.ErrTooManyUnfinished) &&
		!slices.ContainsFunc(faults, func(fault error) bool { return errors.Is(err, fault) })
}
