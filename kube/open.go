package kube

import (
	"sync"
	"time"

	"hsm-signer/kube/request"
)

// An OpenState says why a request is still open.
type OpenState string

// Every OpenState there is.
const (
	OpenPending    OpenState = "pending"     // nobody has decided
	OpenApproved   OpenState = "approved"    // without a certificate
	OpenUnapproved OpenState = "unapproved"  // waits for somebody else's approval
	OpenHeld       OpenState = "held"        // so that slow clients keep their watches
	OpenWaiting    OpenState = "waiting"     // for a fact
	OpenOverBudget OpenState = "over_budget" // granted, and a budget is spent
	// OpenRefusalHeld: refused, and a running pod would lose its volume; see [policy.HeldRefusal].
	OpenRefusalHeld OpenState = "refusal_held"
	OpenFailing     OpenState = "failing" // the last sync ended with a fault
)

// forgetAfter is how long the time without an answer continues after the last due request was
// deleted. Calico's clients give up after 90 seconds, and their pods ask again.
const forgetAfter = 2 * time.Minute

// OpenStates are all of them, in the order of a request's path.
var OpenStates = []OpenState{OpenPending, OpenApproved, OpenUnapproved, OpenHeld, OpenWaiting,
	OpenOverBudget, OpenRefusalHeld, OpenFailing}

// due reports whether a healthy hsm-signer would answer such a request at once.
func (s OpenState) due() bool {
	return s == OpenPending || s == OpenApproved || s == OpenFailing
}

// Open is what is known of the open requests of our signers.
type Open struct {
	// Known is false while another controller leads, which alone knows why a request waits, and
	// until the API server was reached.
	Known  bool
	States map[OpenState]int // has every state
	Oldest time.Time         // when the oldest was created; zero: none is open
	// LastAnswer is when a request was last seen to be answered, by whatever controller; zero:
	// never since the start.
	LastAnswer time.Time
	// Unanswered is how long requests have been due without an answer to any: since the last
	// answer, or since the first became due. 0: none is due.
	Unanswered time.Duration
}

// Open counts the open requests.
func (c *Controller) Open() Open {
	if c.Mode == Shadow || c.requests.Load() == nil || c.ledByAnother() {
		return Open{LastAnswer: c.open.lastAnswer()}
	}
	return c.open.count(time.Now())
}

// ledByAnother reports whether another controller is known to lead.
func (c *Controller) ledByAnother() bool { return !c.Leads() && c.Leader() != "" }

// openState is the state of an open request before a sync.
func (c *Controller) openState(r request.Object) OpenState {
	switch {
	case r.State() == request.Approved:
		return OpenApproved
	case c.Mode == Wait:
		return OpenUnapproved
	}
	return OpenPending
}

// An openRequest is one of [openRequests].
type openRequest struct {
	state   OpenState
	synced  bool // the state is that of a sync, which only a sync changes
	created time.Time
}

// openRequests are the open requests of our signers. It is safe for concurrent use, and its zero
// value is empty. Each change costs the same however many there are.
type openRequests struct {
	mu       sync.Mutex
	all      map[key]openRequest
	due      int       // how many are due
	since    time.Time // since when some are due without an answer to any; zero: none is
	left     time.Time // when the last due one was deleted; zero: some are due, or it was answered
	answered time.Time // when one was last answered
}

// seen notes an open request. What its last sync found stays, unless it was approved since.
func (o *openRequests) seen(k key, state OpenState, created time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before, known := o.all[k]
	if known && before.synced && (before.state != OpenUnapproved || state == OpenUnapproved) {
		return
	}
	o.set(k, openRequest{state: state, created: created})
}

// synced notes how a sync of a request ended that left it open. Being held back changes nothing for
// a request that is failing.
func (o *openRequests) synced(k key, state OpenState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r, known := o.all[k]
	if !known || state == OpenHeld && r.state == OpenFailing {
		return
	}
	r.state, r.synced = state, true
	o.set(k, r)
}

// set keeps a request. The caller must hold mu.
func (o *openRequests) set(k key, r openRequest) {
	if o.all == nil {
		o.all = map[key]openRequest{}
	}
	was := o.all[k].state.due()
	o.all[k] = r
	switch is := r.state.due(); {
	case is && !was:
		o.becameDue()
	case was && !is:
		o.leave(false)
	}
}

// becameDue counts one more due request. The caller must hold mu.
func (o *openRequests) becameDue() {
	if o.due++; o.due > 1 {
		return
	}
	// A client that gave up without an answer, and asks again, continues to wait.
	if now := time.Now(); o.since.IsZero() || now.Sub(o.left) > forgetAfter {
		o.since = now
	}
	o.left = time.Time{}
}

// leave counts one due request less. The caller must hold mu.
func (o *openRequests) leave(deleted bool) {
	switch o.due--; {
	case o.due > 0:
	case deleted:
		o.left = time.Now()
	default:
		o.since = time.Time{}
	}
}

// closed forgets a request. Answered says that it has an answer; else it was deleted, or is not
// ours.
func (o *openRequests) closed(k key, answered bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r, known := o.all[k]
	if !known {
		return
	}
	delete(o.all, k)
	if r.state.due() {
		o.leave(!answered)
	}
	if answered {
		o.answered = time.Now()
		o.restart()
	}
}

// restart begins the time without an answer again. The caller must hold mu.
func (o *openRequests) restart() {
	o.since = time.Time{}
	if o.due > 0 {
		o.since = time.Now()
	}
}

// reset forgets all requests, which will be listed again.
func (o *openRequests) reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.due > 0 {
		o.left = time.Now()
	}
	o.all, o.due = nil, 0
}

// others notes that another controller leads, which answers.
func (o *openRequests) others() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.restart()
}

func (o *openRequests) lastAnswer() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.answered
}

func (o *openRequests) count(now time.Time) Open {
	o.mu.Lock()
	defer o.mu.Unlock()
	counts := Open{Known: true, States: map[OpenState]int{}, LastAnswer: o.answered}
	for _, state := range OpenStates {
		counts.States[state] = 0
	}
	for _, r := range o.all {
		counts.States[r.state]++
		if counts.Oldest.IsZero() || r.created.Before(counts.Oldest) {
			counts.Oldest = r.created
		}
	}
	if o.due > 0 {
		counts.Unanswered = max(0, now.Sub(o.since))
	}
	return counts
}

// noteOpen notes what a sync of a request means for it as long as it is open.
func (c *Controller) noteOpen(r request.Object, result Result, err error) {
	k := keyOf(r)
	switch {
	case isFault(err):
		c.open.synced(k, OpenFailing)
	case result == ResultWaiting:
		c.open.synced(k, OpenWaiting)
	case result == ResultOverBudget:
		c.open.synced(k, OpenOverBudget)
	case result == ResultHeld:
		c.open.synced(k, OpenRefusalHeld)
	case err == nil && !(c.Mode == Wait && r.State() == request.Pending):
		c.open.closed(k, result == ResultIssued || result == ResultRefused)
	}
}
