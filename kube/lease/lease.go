// Package lease elects which of many controllers acts, and fences its acts.
//
// Duty: take part in an election by a Lease object, say who leads, and end what is in work when the
// lease may have passed to another.
//
// Contract: the election follows the protocol of client-go's, which promises no fencing: a process
// that was stopped and continues believes for a moment that it still leads. So each act asks
// [Election.Fence] or [Election.Acting], which judge the age of the lease by both the monotonic
// clock, which a suspended machine may stop, and the wall clock, which may be set. A nil [Election]
// is one without other candidates: it always leads.
package lease

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"k8s.io/apimachinery/pkg/util/wait"

	"hsm-signer/kube/clientset"
)

// A Lease names the object by which one of many controllers is the one that leads: the others watch
// and wait.
type Lease struct {
	Namespace, Name string
	Identity        string // of this controller among them
}

// Times of the election. client-go's usual ones with a shorter retry: a lease that nobody renews
// any more is taken over within 20 s, one that was given up within 3 s.
const (
	leaseDuration = 15 * time.Second // how long others wait since they last saw it renewed
	renewDeadline = 10 * time.Second // how long the leader acts since it last began to renew it
	retryPeriod   = time.Second
)

// ErrNotLeading says that another controller must act.
var ErrNotLeading = errors.New("another controller leads")

// A Candidate stands for election.
type Candidate interface {
	// Fit returns nil while the candidate could serve if it led. One that could not does not stand
	// for election, and one that leads gives the lease up when that lasts.
	Fit() error
	// Annotations returns what each write of the lease says in addition to the leader. An empty
	// value removes an annotation; those that are not named stay as they are.
	Annotations() map[string]string
	// Heard is shown the annotations of the lease each time it is read, and nil if there is no
	// lease. On an error the candidate does not take the lease.
	Heard(annotations map[string]string) error
	// Written is shown the annotations of the lease each time this candidate has written it.
	Written(annotations map[string]string)
	// Leads is called when the candidate leads, and [Election.Fence] has said before that it does
	// not: somebody may have left work to another.
	Leads()
	// Failed is called when the lease could not be written.
	Failed(err error)
	// Changed is called when another candidate has come to lead, or this one.
	Changed(identity string)
}

// An Election is one candidate's part in it. It is safe for concurrent use.
type Election struct {
	lease     Lease
	client    clientset.Interface
	candidate Candidate
	logger    hclog.Logger

	mu      sync.Mutex
	holder  string          // of the lease, as it was last read or written; "": nobody, or unknown
	renewed time.Time       // when the last renewal that succeeded started; zero: it does not lead
	term    context.Context // while it leads; ends when it gives the lease up
	endTerm context.CancelFunc
	began   time.Time // when the term did
	said    bool      // that it does not lead, since then
}

// New returns an election; [Election.Run] takes part in it.
func New(l Lease, client clientset.Interface, candidate Candidate, logger hclog.Logger) *Election {
	return &Election{lease: l, client: client, candidate: candidate, logger: logger}
}

// Acting returns a context that ends when this controller may act no more, or [ErrNotLeading].
func (e *Election) Acting(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if e == nil {
		ctx, cancel := context.WithCancel(ctx)
		return ctx, cancel, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.leads(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithDeadline(ctx, e.renewed.Add(renewDeadline))
	given := context.AfterFunc(e.term, cancel)
	return ctx, func() { given(); cancel() }, nil
}

// Fence returns nil while this controller leads.
func (e *Election) Fence() error {
	if e == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.leads()
}

// settled is the age of a term at which the watch has shown what the leader before answered. Only a
// watch that has stalled for that long has not.
const settled = time.Minute

// Settled reports whether this controller leads and has led for a minute, so that its watch has
// most likely shown all that other leaders have written.
func (e *Election) Settled() bool {
	if e == nil {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.leads() == nil && time.Since(e.began) >= settled
}

// leads returns nil or ErrNotLeading. The caller must hold mu.
func (e *Election) leads() error {
	if !e.isFresh() {
		e.said = true
		return ErrNotLeading
	}
	return nil
}

// isFresh reports whether the last renewal is recent, by both clocks. The caller must hold mu.
func (e *Election) isFresh() bool {
	now := time.Now()
	byWall := now.Round(0).Sub(e.renewed.Round(0)) // Round strips the monotonic reading
	tooOld := now.Sub(e.renewed) >= renewDeadline || byWall >= renewDeadline || byWall < 0
	return !e.renewed.IsZero() && !tooOld
}

// fresh is isFresh for callers that do not hold mu.
func (e *Election) fresh() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.isFresh()
}

// Holder is the identity of the controller that leads, as the lease said when it was last read. It
// is empty if that is not known: nobody leads, this controller does not stand for election, or it
// has lost the lease.
func (e *Election) Holder() string {
	if e == nil {
		return ""
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.holder == e.lease.Identity && e.leads() != nil {
		return ""
	}
	return e.holder
}

// unfitAfter is how long a leader must have been unfit to give the lease up: a fault that passes
// costs less than another leader.
const unfitAfter = 15 * time.Second

// Run takes part in the election, while the candidate is fit, until the context ends; then it gives
// the lease up.
func (e *Election) Run(ctx context.Context) {
	for ctx.Err() == nil && e.waitFit(ctx) {
		standing, resign := context.WithCancel(ctx)
		var group wait.Group
		group.StartWithContext(standing, func(ctx context.Context) { e.watchFit(ctx, resign) })
		e.stand(standing)
		resign()
		group.Wait()
	}
}

// waitFit waits until this controller is fit. It returns false if the context has ended.
func (e *Election) waitFit(ctx context.Context) bool {
	fit := func(context.Context) (bool, error) { return e.candidate.Fit() == nil, nil }
	return wait.PollUntilContextCancel(ctx, retryPeriod, true, fit) == nil
}

// watchFit gives the lease up when this controller has been unfit for a while.
func (e *Election) watchFit(ctx context.Context, resign func()) {
	well := time.Now()
	_ = wait.PollUntilContextCancel(ctx, retryPeriod, true, func(context.Context) (bool, error) {
		err := e.candidate.Fit()
		if err == nil {
			well = time.Now()
		}
		if time.Since(well) < unfitAfter {
			return false, nil
		}
		e.logger.Warn("this controller cannot serve requests, and lets another lead",
			"lease", e.lease.Name, "error", err)
		resign()
		return true, nil
	})
}

// stand stands for election, and leads, until the context ends. Then it gives the lease up.
func (e *Election) stand(ctx context.Context) {
	l := elector{Election: e, leases: e.client.Leases(e.lease.Namespace)}
	defer e.setHolder("") // unknown while it does not stand
	defer l.giveUp()
	for ctx.Err() == nil {
		l.try(ctx)
		select {
		case <-time.After(l.pause()):
		case <-ctx.Done():
		}
	}
}

// observe keeps who holds the lease, and reports a change.
func (e *Election) observe(holder string) {
	before := e.setHolder(holder)
	switch holder {
	case before:
	case "":
		e.logger.Info("the lease was given up", "lease", e.lease.Name)
	default:
		e.logger.Info("a controller leads", "lease", e.lease.Name, "identity", holder)
		e.candidate.Changed(holder)
	}
}

// setHolder keeps who holds the lease, and returns who did before.
func (e *Election) setHolder(holder string) (before string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before, e.holder = e.holder, holder
	return before
}

// note keeps the time of a renewal, or, with a zero time, that this controller does not lead. The
// election does not report a lease that was too old for a moment and then renewed, as when the
// clock is set or this process stood still: what was left to another meanwhile is
// served again.
func (e *Election) note(renewed time.Time) {
	e.mu.Lock()
	e.renewed = renewed
	starts := e.said && !renewed.IsZero()
	e.said = e.said && !starts
	switch {
	case renewed.IsZero() && e.endTerm != nil:
		e.endTerm()
		e.endTerm = nil
	case !renewed.IsZero() && e.endTerm == nil:
		e.term, e.endTerm = context.WithCancel(context.Background())
		e.began = renewed
	}
	e.mu.Unlock()
	if starts {
		e.candidate.Leads()
	}
}
