package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"hsm-signer/kube/request"
)

// Answers says which answers to requests are recorded on the disk.
type Answers interface {
	// Delivered reports whether the journal has the certificate in PEM as published on the request.
	Delivered(uid string, chain []byte) (bool, error)
	// Refused returns those of the requests whose refusal is in the refusal log, and for which the
	// journal has nothing that is unfinished.
	Refused(uids []string) (map[string]bool, error)
}

const (
	// deleteInterval is the time between two deletions. Each of them is an event for every client
	// that watches. Calico's needs up to 15 ms for one, so this takes at most 15 % of its time.
	deleteInterval = 100 * time.Millisecond
	// cleanUpInterval is the time between two looks while nothing can be deleted.
	cleanUpInterval = 5 * time.Second
	// deleteTimeout bounds one deletion.
	deleteTimeout = 10 * time.Second
	// quietTime is how long no client must have waited before something is deleted.
	quietTime = 20 * time.Second
	// clientPatience is how long a client waits for its answer at most: Calico's gives up after 90
	// seconds. An open request that is older keeps nothing from being deleted.
	clientPatience = 2 * time.Minute
	// refusalsInterval is the time between two searches in the refusal log, which reads all of it.
	refusalsInterval = time.Minute
)

// cleanUp deletes finished requests, one at a time, until the context ends. Without
// [Config.DeleteFinishedAfter] it returns at once.
func (c *Controller) cleanUp(ctx context.Context) {
	if c.DeleteFinishedAfter == 0 {
		return
	}
	for {
		next := cleanUpInterval
		if c.cleanUpOnce(ctx) {
			next = deleteInterval
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
	}
}

// cleanUpOnce deletes one request at most. It reports whether there may be another to delete now.
func (c *Controller) cleanUpOnce(ctx context.Context) (more bool) {
	all := c.servedRequests()
	c.cleaner.see(all)
	if c.mayCleanUp() != nil {
		return false
	}
	r, err := c.cleaner.next(all)
	if r == nil && err == nil {
		return false
	}
	if err == nil {
		err = c.deleteFinished(ctx, r)
	}
	if changed := c.cleaner.note(err); changed && err != nil {
		c.Logger.Error("finished requests are left to Kubernetes for now", "error", err)
	}
	return err == nil
}

// servedRequests returns the requests of our signers. Those without a signer name are not among
// them: they may be anyone's; nor are those in namespaces, for pods, which Kubernetes deletes 15
// minutes after they were made.
func (c *Controller) servedRequests() []request.Object {
	var served []request.Object
	for _, r := range c.requests.Load().all() {
		if r.Signer() != "" && r.GetNamespace() == "" && c.serves(r) {
			served = append(served, r)
		}
	}
	return served
}

// mayCleanUp returns nil if this controller leads, could answer a request now, sees every new one,
// and may delete requests.
func (c *Controller) mayCleanUp() error {
	if c.Process != nil {
		if err := c.Process.Fit(); err != nil {
			return err
		}
	}
	return errors.Join(c.election.Fence(), c.watched(), c.access.MayDelete())
}

// deleteFinished deletes the request, unless it has changed or is gone.
func (c *Controller) deleteFinished(ctx context.Context, r request.Object) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	ctx, done, err := c.election.Acting(ctx)
	if err != nil {
		return nil // another controller continues
	}
	defer done()
	err = r.Delete(ctx)
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err):
		return nil
	case err != nil:
		c.access.Recheck(err)
		return fmt.Errorf("delete a finished request: %w", err)
	}
	c.sinks.Report(Deletion{Name: nameOf(r), UID: string(r.GetUID()), Signer: r.Signer()})
	return nil
}

// CleanUpFault returns why finished requests cannot be deleted. It returns nil if they can, or are
// not to be.
func (c *Controller) CleanUpFault() error {
	if c.DeleteFinishedAfter == 0 {
		return nil
	}
	return errors.Join(c.access.MayDelete(), c.cleaner.lastFault())
}

// A cleaner chooses the requests to delete. It counts from when it first saw a request answered, by
// its own clock, so that the API server's clock does not matter. Only [cleaner.lastFault] is safe
// for concurrent use.
type cleaner struct {
	after   time.Duration // a request is kept for so long after it was answered
	answers Answers
	now     func() time.Time

	seen     map[types.UID]*sighting
	queue    []*sighting // to be deleted, the first answered first; sorted once for all of them
	round    int         // of looks
	waited   time.Time   // when a client was last seen waiting
	searched time.Time   // when the refusal log was last read

	mu    sync.Mutex
	fault error
}

// A sighting is what the cleaner knows of one request.
type sighting struct {
	request  request.Object
	state    request.State
	since    time.Time // when it was first seen in this state, or was last tried
	round    int       // in which it was last seen
	recorded bool      // its refusal is in the log
}

func newCleaner(after time.Duration, answers Answers) *cleaner {
	return &cleaner{after: after, answers: answers, now: time.Now, seen: map[types.UID]*sighting{}}
}

// see takes note of all requests that there are: what is new, what was answered, and what is gone.
func (c *cleaner) see(all []request.Object) {
	now := c.now()
	c.round++
	for _, r := range all {
		s, state := c.seen[r.GetUID()], r.State()
		if s == nil { // its client may wait, even if it is answered already
			s = &sighting{state: state, since: now}
			c.seen[r.GetUID()], c.waited = s, now
		}
		if s.state != state {
			*s = sighting{state: state, since: now}
			c.waited = now
		}
		s.request = r
		if state.Open() && now.Sub(s.since) < clientPatience {
			c.waited = now
		}
		s.round = c.round
	}
	if len(c.seen) == len(all) {
		return
	}
	for uid, s := range c.seen {
		if s.round != c.round {
			delete(c.seen, uid)
		}
	}
}

// next returns the request to delete now, of those last given to see. It returns nil if there is
// none, or while clients may be waiting.
func (c *cleaner) next(all []request.Object) (request.Object, error) {
	if c.now().Sub(c.waited) < quietTime {
		return nil, nil
	}
	if err := c.searchRefusals(all); err != nil {
		return nil, err
	}
	if len(c.queue) == 0 {
		c.queue = c.candidates()
	}
	for len(c.queue) > 0 {
		s := c.queue[0]
		c.queue = c.queue[1:]
		if s.round != c.round || !c.mayDelete(s) { // it is gone, or has changed since
			continue
		}
		s.since = c.now() // whatever comes of it, it is not the next one
		if s.state == request.Refused {
			return s.request, nil
		}
		delivered, err := c.answers.Delivered(string(s.request.GetUID()), s.request.Certificate())
		if err != nil || delivered {
			return s.request, err
		}
	}
	return nil, nil
}

// candidates returns what may be deleted, in the order in which it was answered. What is due later
// comes after all of it.
func (c *cleaner) candidates() (due []*sighting) {
	for _, s := range c.seen {
		if c.mayDelete(s) {
			due = append(due, s)
		}
	}
	slices.SortFunc(due, func(a, b *sighting) int { return a.since.Compare(b.since) })
	return due
}

// mayDelete reports whether the request is due, and its answer was recorded as far as is known.
func (c *cleaner) mayDelete(s *sighting) bool {
	return c.due(s) && (s.state == request.Issued || s.recorded)
}

// due reports whether the request was answered long enough ago.
func (c *cleaner) due(s *sighting) bool {
	return (s.state == request.Issued || s.state == request.Refused) &&
		c.now().Sub(s.since) >= c.after
}

// searchRefusals finds out which of the refused requests that are due are in the refusal log.
func (c *cleaner) searchRefusals(all []request.Object) error {
	var uids []string
	for _, r := range all {
		if s := c.seen[r.GetUID()]; c.due(s) && s.state == request.Refused && !s.recorded {
			uids = append(uids, string(r.GetUID()))
		}
	}
	if len(uids) == 0 || c.now().Sub(c.searched) < refusalsInterval {
		return nil
	}
	c.searched = c.now()
	recorded, err := c.answers.Refused(uids)
	if err != nil {
		return err
	}
	for _, uid := range uids {
		s := c.seen[types.UID(uid)]
		if s.recorded = recorded[uid]; !s.recorded {
			s.since = c.now()
		}
	}
	return nil
}

// note keeps why the last deletion failed, nil if it did not, and reports whether that has changed.
func (c *cleaner) note(err error) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed = (err == nil) != (c.fault == nil) || err != nil && err.Error() != c.fault.Error()
	c.fault = err
	return changed
}

func (c *cleaner) lastFault() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fault
}
