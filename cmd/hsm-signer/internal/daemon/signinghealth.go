package daemon

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
)

// A caHolder has the CA that certificates are issued under now, or would be.
type caHolder interface{ CA() *issuer.CA }

// A journalState reports whether the journal takes a new request.
type journalState interface{ State() error }

// A suspect is what a witness makes suspect about the journal.
type suspect interface{ Suspicion() error }

// A phase is how a rotation of the CA stands.
type phase interface {
	Unclear() error // why nothing may be signed
	// Summary describes a rotation that is under way; empty: there is none.
	Summary() string
}

// signingHealth knows whether token, CA and journal can serve requests.
type signingHealth struct {
	token   *tokenWatch
	ca      caHolder
	journal journalState
	witness suspect
	clock   clock // of the API server; nil: pod certificates are not served
	phase   phase // of a rotation of the CA
	other   *otherKey

	standby bool // another process may lead and have the journal open, and this one stands by

	mu      sync.Mutex
	crowded time.Time // since when the journal has too many unfinished requests; zero if it has not
}

// Fit returns nil while token, CA and journal can serve requests. The clock is no part of it: other
// requests are answered without it, and if it is the API server's that is wrong, every replica
// finds the same.
func (h *signingHealth) Fit() error {
	now := time.Now()
	return errors.Join(h.token.part().err, h.ca.CA().ValidAt(now), h.journalFit(now))
}

// parts returns the states of token, CA, journal, for pod certificates the clock, and of a rotation
// of the CA, if there is one. caNote is worth knowing of the CA.
func (h *signingHealth) parts(caNote string) []part {
	ca := part{name: "ca", err: h.ca.CA().ValidAt(time.Now()), note: caNote}
	parts := []part{h.token.part(), ca, h.journalPart()}
	if h.clock != nil {
		parts = append(parts, part{name: "clock", err: h.clock.Fault()})
	}
	return append(parts, h.rotationPart()...)
}

// rotationPart returns the state of a rotation of the CA; nothing without one.
func (h *signingHealth) rotationPart() []part {
	p := part{name: "rotation", err: h.phase.Unclear(), note: h.phase.Summary()}
	if p.err == nil && p.note == "" {
		return nil
	}
	return []part{p}
}

// journalPart returns the state of the journal.
func (h *signingHealth) journalPart() part {
	err := h.journal.State()
	if h.standby && errors.Is(err, journal.ErrLocked) {
		return part{name: "journal", note: "this process stands by: " + err.Error()}
	}
	const runbook = " (docs/runbook.md: HSMSignerJournalRolledBack)"
	p := part{name: "journal", err: err}
	if errors.Is(err, journal.ErrRolledBack) {
		p.err = fmt.Errorf("%w; nothing is signed: find out why, then run \"hsm-signer audit "+
			"accept-rollback\"%s", err, runbook)
	}
	if suspected := h.witness.Suspicion(); suspected != nil && err == nil {
		p.note = suspected.Error() + runbook
	}
	return p
}

// letOthersLead is how long a controller with too many unfinished requests leaves the lease to
// another.
const letOthersLead = time.Minute

// journalFit returns nil if the journal can serve. With too many unfinished requests, and no other
// fault, this controller stands for election again after a while: where nobody else leads, it must
// lead itself to publish them.
func (h *signingHealth) journalFit(now time.Time) error {
	err := h.journal.State()
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
