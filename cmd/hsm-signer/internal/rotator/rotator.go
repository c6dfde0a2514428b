// Package rotator carries out a rotation of the CA in a process that signs.
//
// Duty: read the phase from the lease, have the CA sign that the phase names, record each phase in
// the journal; as the leader, take the steps that an operator orders, if their guards are open, and
// write the phase into the lease.
//
// Contract: the lease is what counts, and it is written by the leader alone, in the same write that
// renews its lead. A step takes effect when it is written there. While the phase cannot be read,
// needs a CA that the process lacks or is not in the journal yet, [Rotator.Fault] returns an error,
// and nothing may be signed.
package rotator

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/rotation"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
)

// An Issuer issues under one of two CAs.
type Issuer interface {
	SignWith(key [sha256.Size]byte) error
	// CAOf returns the CA with the key; nil if there is none.
	CAOf(key [sha256.Size]byte) *issuer.CA
}

// A Journal has a line for each phase.
type Journal interface {
	Writer() *journal.Writer // nil: it is not open
	Append(ctx context.Context, e journal.Entry) error
}

// Config says what a Rotator works with.
type Config struct {
	Keys      rotation.Keys
	Elected   bool // there is an election, and so a lease
	Issuer    Issuer
	Journal   Journal
	TrustTime time.Duration // see [rotation.Facts]
	Lifetime  time.Duration
	Proved    func(ctx context.Context) error // nil: the next CA's key signs; called with a next CA
	// Usage returns which certificates are in use of each CA, and which pods with one were created
	// before a time.
	Usage  func(ctx context.Context, cas []*x509.Certificate, before time.Time) (expiry.Usage, error)
	Others func() []string      // the journals of other replicas that may have certificates in use
	Ahead  func() time.Duration // of the API server's clock; see [rotation.Facts]
	Logger hclog.Logger
}

// A Controller leads, or does not, and sends Events.
type Controller interface {
	Leads() bool
	Warn(reason, message string)
}

// A Bundle publishes the roots of the CAs, as the phase says.
type Bundle interface {
	// Holds publishes them, and returns why they are not published.
	Holds(ctx context.Context) error
	// Roots returns those of each CA.
	Roots() rotation.Roots
}

// A Rotator is safe for concurrent use.
type Rotator struct {
	Config
	controller Controller
	bundle     Bundle

	mu      sync.Mutex
	state   rotation.State // as last read from the lease, or written
	heardAt time.Time      // when that was; zero: never
	fault   error          // why nothing may be signed
	order   *rotation.Order
	pending *pending // to be written with the next renewal; nil: nothing

	count poll.Latest[Count]
}

// pending is what the leader is about to write.
type pending struct {
	base   rotation.State // on which it was decided
	next   rotation.State
	answer rotation.Answer
}

var errNotHeard = errors.New("the phase of the CA's rotation was not read from the lease yet")

// New returns a rotator; [Rotator.Run] has it carry out orders.
func New(c Config) *Rotator { return &Rotator{Config: c, fault: errNotHeard} }

// Connect names the controller that the rotator is part of, and the bundle. It must be called
// before [Rotator.Run] and the election.
func (r *Rotator) Connect(c Controller, b Bundle) { r.controller, r.bundle = c, b }

// Fault returns why nothing may be signed, or nil.
func (r *Rotator) Fault() error {
	if !r.Elected {
		return r.lost()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fault
}

// Heard reports whether the lease was read.
func (r *Rotator) heard() bool { return !r.heardAt.IsZero() }

// State returns how the rotation stands, as the lease last said; known is false before it was read.
func (r *Rotator) State() (s rotation.State, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state, r.heard()
}

// Publishes reports whether the roots of CA_CERT_FILE and of NEXT_CA_CERT_FILE are to be published.
func (r *Rotator) Publishes() (ca, next bool) {
	s, _ := r.State()
	return s.Publishes(r.Keys)
}

// Unclear returns why the phase is not clear although the lease was read, or nil.
func (r *Rotator) Unclear() error {
	if err := r.Fault(); !errors.Is(err, errNotHeard) {
		return err
	}
	return nil
}

// Summary describes a rotation that is under way; it is empty if there is none.
func (r *Rotator) Summary() string {
	if s, _ := r.State(); s.Ongoing(r.Keys) {
		return s.String()
	}
	return ""
}

// lost returns an error if the journal has a phase that the lease, or its absence, contradicts: the
// rotation continues, and nobody knows how far it came since.
func (r *Rotator) lost() error {
	w := r.Journal.Writer()
	if w == nil {
		return nil // nothing is signed either
	}
	last := w.Rotation()
	if last == nil || last.Phase == journal.PhaseNone ||
		last.Phase == journal.PhaseRetired && rotation.Key(last.To) == r.Keys.CA {
		return nil
	}
	if !r.Elected {
		return fmt.Errorf("the journal says that a rotation of the CA is in the phase %s: it needs "+
			"LEADER_ELECT=true", last.Phase)
	}
	return fmt.Errorf("the journal says that a rotation of the CA is in the phase %s, and the "+
		"lease, which may have been deleted, says nothing: find out what the other replicas say "+
		"(hsm-signer ca rotate status), then run \"hsm-signer ca rotate restore PHASE\"",
		last.Phase)
}

// memory is how long the process trusts what it heard if the lease says nothing any more: somebody
// deleted the lease, or its annotations, while it was read all the time.
const memory = 10 * time.Second

// Heard takes over what the lease says. On an error this process must not lead.
func (r *Rotator) Heard(annotations map[string]string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	state, err := rotation.Read(annotations)
	if err == nil && state == (rotation.State{}) {
		if r.fault == nil && time.Since(r.heardAt) < memory {
			state = r.state
		} else {
			err = r.lost()
		}
	}
	r.readOrder(annotations)
	if err == nil {
		err = r.rolledBack(state)
	}
	if err == nil {
		err = r.adopt(state)
	}
	return r.note(err)
}

// rolledBack returns an error if the journal has a later step than the lease: etcd was restored
// from a snapshot, or somebody wrote an earlier state.
func (r *Rotator) rolledBack(s rotation.State) error {
	w := r.Journal.Writer()
	if w == nil || s == (rotation.State{}) {
		return nil // nothing is signed either; see lost
	}
	last := w.Rotation()
	if last == nil || !last.Since.After(s.Changed) {
		return nil
	}
	return fmt.Errorf("the journal says that the CA's rotation has entered the phase %s at %s, and "+
		"the lease has an earlier step: find out why, and what the other replicas say (hsm-signer "+
		"ca rotate status), then run \"hsm-signer ca rotate restore PHASE\"", last.Phase,
		last.Since.UTC().Format(time.RFC3339))
}

// Written takes over what this process has written to the lease.
func (r *Rotator) Written(annotations map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.state
	state, err := rotation.Read(annotations)
	if err == nil {
		err = r.adopt(state)
	}
	if r.note(err) == nil && state != before {
		r.controller.Warn("CARotation", "the CA's rotation: "+state.String())
	}
	if answer, is := rotation.ReadAnswer(annotations); is && r.pending != nil &&
		answer.ID == r.pending.answer.ID {
		r.pending = nil
	}
	r.readOrder(annotations)
}

// note keeps why nothing may be signed, and logs a change. The caller must hold mu.
func (r *Rotator) note(err error) error {
	if err != nil && (r.fault == nil || r.fault.Error() != err.Error()) {
		r.Logger.Error("the phase of the CA's rotation is not clear; nothing is signed", "error",
			err)
	}
	r.fault = err
	return err
}

// readOrder takes over the order in the lease, and drops what was decided on another. The caller
// must hold mu.
func (r *Rotator) readOrder(annotations map[string]string) {
	order, is, err := rotation.ReadOrder(annotations)
	if err != nil {
		r.Logger.Warn("an order for the CA's rotation cannot be read, and is not carried out",
			"error", err)
	}
	r.order = nil
	if is && err == nil {
		r.order = &order
	}
	if r.pending != nil && (r.order == nil || r.order.ID != r.pending.answer.ID) {
		r.pending = nil
	}
}

// appendTimeout bounds the wait for the line of a phase.
const appendTimeout = 5 * time.Second

// adopt has the CA sign that the state names, after the journal has the phase. The caller must hold
// mu.
func (r *Rotator) adopt(s rotation.State) error {
	if r.heard() && r.fault == nil && s == r.state {
		r.heardAt = time.Now()
		return nil
	}
	if err := s.MaySign(r.Keys, r.bundle.Roots(), r.Issuer.CAOf); err != nil {
		return err
	}
	if err := r.record(s); err != nil {
		return fmt.Errorf("the phase %s of the CA's rotation is not in the journal: %w",
			s.Current(), err)
	}
	if err := r.Issuer.SignWith(s.Signer(r.Keys)); err != nil {
		return err
	}
	if !r.heard() && s.Ongoing(r.Keys) || r.heard() && s != r.state {
		r.Logger.Warn("the CA's rotation", "state", s.String(), "signs",
			s.Signer(r.Keys).Short())
	}
	if r.pending != nil && r.pending.base != s && r.pending.next != s {
		r.pending = nil
	}
	r.state, r.heardAt = s, time.Now()
	return nil
}

// Replace calls replace with another certificate of one of the CAs. It returns an error instead if
// that is of the CA to which the rotation leads, and clients may not trust it yet.
func (r *Rotator) Replace(fresh *issuer.CA, replace func(*issuer.CA) error) error {
	r.mu.Lock() // no step is taken meanwhile
	defer r.mu.Unlock()
	if fresh.KeySHA256() == r.state.To {
		if err := r.state.CheckRoots(r.Keys, r.bundle.Roots(), fresh); err != nil {
			return err
		}
	}
	return replace(fresh)
}

// record writes the step to the journal, unless its last line about a rotation is of the same step,
// or the process does not know both CAs: then there is no rotation. A later step to the same phase
// has a line of its own, by which an earlier lease is known.
func (r *Rotator) record(s rotation.State) error {
	w := r.Journal.Writer()
	if w == nil {
		return errors.New("the journal is not open yet")
	}
	phase := journal.Phase(s.Current())
	last := w.Rotation()
	if last == nil && phase == journal.PhaseNone || last != nil && last.Phase == phase &&
		last.Since.Equal(s.Changed) && rotation.Key(last.From) == s.From &&
		rotation.Key(last.To) == s.To {
		return nil
	}
	from, to := r.Issuer.CAOf(s.From), r.Issuer.CAOf(s.To)
	if from == nil || to == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), appendTimeout)
	defer cancel()
	line := journal.NewRotation(phase, from.Certificate(), to.Certificate(), s.Reason)
	line.Since = s.Changed
	return r.Journal.Append(ctx, line)
}

// Annotations returns what the lease is to say: the state, and an answer to the order.
func (r *Rotator) Annotations() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.fault != nil:
		return nil // it keeps what it says
	case r.pending == nil && r.state == (rotation.State{}):
		return nil
	case r.pending == nil:
		return map[string]string{rotation.StateKey: rotation.Encode(r.state)}
	}
	said := map[string]string{rotation.OrderKey: "",
		rotation.AnswerKey: rotation.Encode(r.pending.answer)}
	if r.pending.next != (rotation.State{}) {
		said[rotation.StateKey] = rotation.Encode(r.pending.next)
	}
	return said
}

// interval is the time between two looks for an order.
const interval = time.Second

// Run carries out orders while this process leads, until the context ends.
func (r *Rotator) Run(ctx context.Context) error {
	return poll.Every(ctx, interval, r.look)
}

// look decides on the order in the lease.
func (r *Rotator) look(ctx context.Context) {
	r.mu.Lock()
	order, state, busy := r.order, r.state, r.pending != nil || r.fault != nil
	r.mu.Unlock()
	if order == nil || busy || !r.controller.Leads() {
		return
	}
	next, refused := r.decide(ctx, state, *order)
	if ctx.Err() != nil {
		return
	}
	r.Logger.Warn("an order for the CA's rotation", "step", order.Step, "by", order.By, "reason",
		order.Reason, "refused", refused)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != state || r.order == nil || r.order.ID != order.ID || r.fault != nil {
		return // something has changed meanwhile
	}
	r.pending = &pending{base: state, next: next, answer: rotation.Answer{ID: order.ID,
		Phase: next.Current(), Refused: cut(refused), At: time.Now().UTC().Truncate(time.Second)}}
}

// cut bounds what is written to the lease.
func cut(text string) string {
	const most = 4000
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// decide returns the state after the order, and why it is refused.
func (r *Rotator) decide(ctx context.Context, s rotation.State, order rotation.Order) (
	rotation.State, string) {
	if order.Stale(time.Now()) {
		return s, fmt.Sprintf("the order is of %s, which is too long ago, or the clocks differ",
			order.At.Format(time.RFC3339))
	}
	next, refusal := s.Take(order.Wish(), r.facts(ctx, s, order.Step))
	if refusal != nil {
		return s, refusal.Error()
	}
	if order.DryRun {
		return s, ""
	}
	return next, ""
}

// facts returns what the guards depend on.
func (r *Rotator) facts(ctx context.Context, s rotation.State, step rotation.Step) rotation.Facts {
	f := rotation.Facts{Now: time.Now(), Ahead: r.Ahead(), Keys: r.Keys, TrustTime: r.TrustTime,
		Lifetime: r.Lifetime, Ends: map[rotation.Key]time.Time{}}
	for _, key := range []rotation.Key{r.Keys.CA, r.Keys.Next} {
		if ca := r.Issuer.CAOf(key); ca != nil {
			f.Ends[key] = ca.Certificate().NotAfter
		}
	}
	if next := r.Issuer.CAOf(r.Keys.Next); next != nil {
		f.Proved = errors.Join(next.ValidAt(f.Now), r.Proved(ctx))
	}
	if to := r.Issuer.CAOf(s.To); to != nil {
		roots := r.bundle.Roots()
		f.Roots, f.Rooted = rotation.NewRootSet(roots.Of(s.To, r.Keys)),
			s.CheckRoots(r.Keys, roots, to)
	}
	f.Published = r.bundle.Holds(ctx)
	if s.NeedsLive(step) {
		f.Live = r.live(ctx, s)
	}
	return f
}
