// Package kube bridges the Kubernetes API and the decision.
//
// Duty: watch the certificate requests of our signers, gather the facts that a decision needs (the
// live pod), hand them over, and write back the result of it: approval, certificate, denial,
// failure, events.
//
// Contract: the state of a request is read from the object, never remembered, so after any crash it
// is enough to look again. Every write carries the UID and resourceVersion of the object that was
// decided on, so nothing lands on a request that has changed or was recreated. Denied and Failed
// are final, and only a verdict leads to them: a fault leaves the request as it is, to be tried
// again. The package knows neither certificates nor tokens, nor any kind of request: package
// request has the interfaces of one.
package kube

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/workqueue"

	"hsm-signer/kube/access"
	"hsm-signer/kube/apifault"
	"hsm-signer/kube/clientset"
	"hsm-signer/kube/lease"
	"hsm-signer/kube/pace"
	"hsm-signer/kube/request"
	"hsm-signer/policy"
)

// A Decider decides whether a request may have its certificate.
type Decider interface {
	// PodQuery returns the look-up that the decision depends on, or false if there is none.
	PodQuery(r *policy.Request) (policy.PodQuery, bool)
	Decide(r *policy.Request, facts policy.Facts) policy.Verdict
}

// An Issuer makes certificates.
type Issuer interface {
	// Prepare does everything that precedes the signature. It returns exactly one of a prepared
	// certificate; a verdict that takes the grant's place, [*policy.Refusal] or [*policy.Waiting];
	// and an error: the certificate cannot be issued now.
	Prepare(ctx context.Context, grant *policy.Grant) (Prepared, policy.Verdict, error)
	// Published records that the API server took the request's certificate.
	Published(ctx context.Context, uid string) error
	// Unfinished returns the requests that were started earlier and have not ended, as far as is
	// known: UID, name and signer name of each.
	Unfinished() []policy.Submission
	// Made reports whether the certificate in PEM is the one that was made for the request.
	Made(uid string, chain []byte) (bool, error)
	// Signed reports whether the CA has signed the certificate in PEM, and whether its serial
	// number is one of this issuer's.
	Signed(chain []byte) (byCA, ours bool)
	// Orphaned records that the request will not take its certificate. It does nothing while the
	// certificate is being signed.
	Orphaned(ctx context.Context, uid, why string) error
	// Unconfirmed records that nobody can find out any more whether the request took its
	// certificate.
	Unconfirmed(ctx context.Context, uid, why string) error
}

// A Prepared is a certificate that only needs to be signed.
type Prepared interface {
	// Issue signs it, once, and returns it with its chain in PEM. An error is a fault that may
	// pass; it is [policy.ErrGrantStale] if the policy or the CA was replaced since it was
	// prepared.
	Issue(ctx context.Context) ([]byte, error)
}

// A Mode says what a Controller does with a verdict.
type Mode string

const (
	// Approve approves what is granted, and issues.
	Approve Mode = "true"
	// Wait issues what is granted and someone else has approved.
	Wait Mode = "false"
	// Shadow decides on every request once, logs that, and writes nothing to the cluster.
	Shadow Mode = "shadow"
)

// A Process is what a controller is part of, as a candidate for the lease: see [lease.Candidate].
type Process interface {
	// Fit returns nil while the process could serve requests if it led.
	Fit() error
	// Annotations returns annotations for each write of the lease. An empty value removes one;
	// those that are not named stay as they are.
	Annotations() map[string]string
	// Heard is shown the annotations of the lease each time it is read, and nil if there is no
	// lease. On an error the process does not take the lease.
	Heard(annotations map[string]string) error
	// Written is shown the annotations of the lease each time this process has written it.
	Written(annotations map[string]string)
}

// Config says what a Controller serves and how.
type Config struct {
	Client      clientset.Interface
	Kind        request.Kind // of request that is served
	SignerNames []string     // that are served
	// PodCertificates: the kind has pod certificate requests too.
	PodCertificates bool
	Mode            Mode
	Lease           *lease.Lease // nil: there is no other controller. A shadow has none
	Process         Process      // candidate for the lease; nil: always fit, with nothing to say
	// PodNamespaces returns the namespaces in which pods are read; nil means all.
	PodNamespaces func() []string
	Workers       int // requests in work at once
	Pace          pace.Options
	Decider       Decider
	Issuer        Issuer
	Sinks         []Sink // receive what the controller reports
	Logger        hclog.Logger
	// DeleteFinishedAfter is how long a finished request of our signers is kept before it is
	// deleted; 0: it is left to Kubernetes. Else Answers is set.
	DeleteFinishedAfter time.Duration
	Answers             Answers
}

// Use returns what the controller does, for which it needs permissions.
func (c *Config) Use() access.Use {
	use := access.Use{
		SignerNames: c.SignerNames, Answers: c.Mode != Shadow, Approves: c.Mode == Approve,
		Lease: c.Lease, Deletes: c.DeleteFinishedAfter > 0, PodCertificates: c.PodCertificates,
	}
	if c.PodNamespaces != nil {
		use.PodNamespaces = c.PodNamespaces()
	}
	return use
}

// A Controller serves certificate requests.
type Controller struct {
	Config
	sinks    sinks // those of Config, the log and the Events
	events   *eventSink
	queue    workqueue.TypedRateLimitingInterface[key]
	pacer    *pace.Pacer[key]
	election *lease.Election          // nil without a lease
	requests atomic.Pointer[requests] // nil until the API was found
	pods     podReader

	access     *access.Watch
	cleaner    *cleaner
	large      chan struct{} // of size 1: held by the sync of a request that is read whole
	known      atomic.Int64  // requests of our signers, done ones too
	open       openRequests  // requests of our signers that have no answer
	unwritable unwritable    // requests that are too large to be written
	// certificates are those at the last look; only reconcile uses them.
	certificates map[types.UID]known

	mu sync.Mutex
	// watches are why requests are not watched, by selector, and of [missingKinds]; nil: they are.
	watches map[string]error
}

// Waits between two syncs of the same request after a fault or while a fact is missing.
const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = 8 * time.Second // a pod's init container gives up after 90
)

var (
	errStarting = errors.New("the API server was not reached yet")
	errListing  = errors.New("the API server has not listed all requests yet")
)

// New returns a controller; [Controller.Run] starts it.
func New(c Config) *Controller {
	events := newEventSink(c.Mode)
	controller := &Controller{
		Config:  c,
		events:  events,
		sinks:   append(sinks{logSink{c.Logger}, events}, c.Sinks...),
		watches: map[string]error{"": errStarting},
		cleaner: newCleaner(c.DeleteFinishedAfter, c.Answers),
		large:   make(chan struct{}, 1),
		pods:    podReader{client: c.Client},
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[key](firstRetry, lastRetry),
			workqueue.TypedRateLimitingQueueConfig[key]{Name: "requests"},
		),
	}
	reviews := access.Reviews{Client: c.Client}
	controller.access = access.NewWatch(reviews, accessUser{controller}, c.Logger)
	controller.pacer = pace.New(c.Pace, controller.queue.Add)
	if c.Lease != nil {
		controller.election = lease.New(*c.Lease, c.Client, candidate{controller}, c.Logger)
	}
	return controller
}

// Leads reports whether this controller is the one that acts.
func (c *Controller) Leads() bool { return c.Mode != Shadow && c.election.Fence() == nil }

// Leader is the identity of the controller that leads, as the lease says; empty when that is not
// known, and without an election.
func (c *Controller) Leader() string { return c.election.Holder() }

// Pace returns how fast answers are written, and why.
func (c *Controller) Pace() pace.State { return c.pacer.State() }

// Queued is the number of requests that wait for a worker.
func (c *Controller) Queued() int { return c.queue.Len() }

// Permitted returns nil while no permission is known to be missing that requests need; see also
// [Controller.CleanUpFault].
func (c *Controller) Permitted() error { return c.access.Permitted() }

// Ready returns nil while requests of all kinds are being watched, and otherwise why not.
func (c *Controller) Ready() error {
	c.mu.Lock()
	missing := c.watches[missingKinds]
	c.mu.Unlock()
	return errors.Join(missing, c.watched())
}

// watched returns nil while the requests are being watched of each kind whose API the cluster has.
func (c *Controller) watched() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []error
	for selector, err := range c.watches {
		if selector != missingKinds {
			all = append(all, err)
		}
	}
	if api := c.requests.Load(); api != nil && !api.whole() {
		all = append(all, errListing)
	}
	return errors.Join(all...)
}

// watching notes how the watch of a selector stands.
func (c *Controller) watching(selector string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watches[selector] = err
}

// Run serves requests until the context ends; then it finishes what is in work and returns. An API
// server that cannot be reached is tried again and again.
func (c *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the watches also when Run ends by itself
	defer c.events.start(c.Client, c.Mode)()

	api, err := c.findAPI(ctx)
	if err != nil {
		return err
	}
	var group wait.Group
	defer group.Wait()
	started := make(chan struct{})
	group.StartWithContext(ctx, func(ctx context.Context) {
		c.keepWatching(ctx, api, sync.OnceFunc(func() { close(started) }))
	})
	<-started
	if c.Mode != Shadow {
		group.StartWithContext(ctx, c.access.Run)
	}
	defer c.startElection()()
	if c.Issuer != nil {
		group.StartWithContext(ctx, c.reconcileJournal)
		group.StartWithContext(ctx, c.countRequests)
		group.StartWithContext(ctx, c.cleanUp)
	}
	group.StartWithContext(ctx, c.pacer.Run)
	c.workUntil(ctx)
	return nil
}

// drainTimeout bounds what is still in work when the context has ended: a supervisor kills after a
// while, Kubernetes after 30 seconds unless told otherwise.
const drainTimeout = 20 * time.Second

// workUntil has the workers work until the context ends, and waits for them.
func (c *Controller) workUntil(ctx context.Context) {
	syncs, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var workers wait.Group
	for range max(1, c.Workers) {
		workers.Start(func() { c.work(ctx, syncs) })
	}
	<-ctx.Done()
	c.queue.ShutDown()
	late := time.AfterFunc(drainTimeout, cancel)
	defer late.Stop()
	workers.Wait()
}

// startElection takes part in the election, if there is one, and returns what ends that and gives
// the lease up: to be called when all work is done.
func (c *Controller) startElection() (stop func()) {
	if c.election == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group wait.Group
	group.StartWithContext(ctx, c.election.Run)
	return func() {
		cancel()
		group.Wait()
	}
}

// work takes requests from the queue until it shuts down. What has started ends with the context of
// syncs.
func (c *Controller) work(ctx, syncs context.Context) {
	for {
		item, shutdown := c.queue.Get()
		if shutdown {
			return
		}
		c.serve(ctx, syncs, item)
		c.queue.Done(item)
	}
}

// serve gives one request one sync. Work that has started is finished although the context ends.
func (c *Controller) serve(ctx, syncs context.Context, item key) {
	if ctx.Err() != nil {
		return
	}
	r := c.requests.Load().cached(item)
	if r == nil || c.election.Fence() != nil || c.access.Blocked() {
		c.pacer.Tried(item)
		// It was deleted, or is another controller's, or nothing may be done: a controller that
		// leads and may act syncs all.
		c.queue.Forget(item)
		return
	}
	if !c.pacer.Admit(item) {
		c.open.synced(item, OpenHeld)
		return // it comes back when it may be answered
	}
	syncCtx, cancel := context.WithTimeout(syncs, syncTimeout)
	defer cancel()
	syncOne := c.sync
	if c.Mode == Shadow {
		syncOne = c.shadow
	}
	result, verdict, err := syncOne(syncCtx, r)
	c.access.Recheck(err)
	if errors.Is(err, errPaced) {
		c.open.synced(item, OpenHeld)
		return // it comes back when it may be answered
	}
	c.noteOpen(r, result, err)
	if isFault(err) {
		result = ResultFault
	}
	c.report(r, result, verdict, err)
	if err == nil {
		c.queue.Forget(item)
		c.pacer.Gone(item)
		return
	}
	c.pacer.Tried(item)
	c.retry(r, item, verdict, err)
}

// isFault reports whether the error of a sync is more than a reason to look again.
func isFault(err error) bool {
	return err != nil && !errors.Is(err, lease.ErrNotLeading) && !errors.Is(err, errLookAgain) &&
		!apifault.VersionGone(err)
}

// retry puts a request that is not finished into the queue again.
func (c *Controller) retry(r request.Object, item key, verdict policy.Verdict, err error) {
	switch until := waitsUntil(verdict); {
	case !until.IsZero():
		c.queue.Forget(item)
		age := time.Since(r.GetCreationTimestamp().Time)
		c.queue.AddAfter(item, longWait(until, age))
	case errors.Is(err, lease.ErrNotLeading):
		c.Logger.Warn("the lease was lost during a sync; another controller continues",
			"request", item.name, "uid", item.uid)
		c.queue.Forget(item)
	default:
		c.queue.AddRateLimited(item)
	}
}

// report reports how a sync ended, unless there is nothing to tell.
func (c *Controller) report(
	r request.Object, result Result, verdict policy.Verdict, err error,
) {
	if result == resultNone {
		return
	}
	now := time.Now()
	outcome := Outcome{
		At: now, Result: result, Object: *r.Reference(), Name: nameOf(r), UID: string(r.GetUID()),
		Signer: r.Signer(), Requester: r.Submission().Requester.Username,
		Verdict: verdict, Rule: ruleOf(verdict), Reason: reasonOf(verdict),
		Age: max(0, now.Sub(r.GetCreationTimestamp().Time)),
	}
	if result == ResultFault {
		outcome.Reason = err.Error()
	}
	c.sinks.Report(outcome)
}

// waitsUntil returns when a budget has room again, or a held refusal becomes final; zero for any
// other verdict.
func waitsUntil(v policy.Verdict) time.Time {
	waiting, _ := v.(*policy.Waiting)
	switch {
	case waiting == nil:
	case waiting.Budget != nil:
		return waiting.Budget.Until
	case waiting.Held != nil:
		return waiting.Held.Until
	}
	return time.Time{}
}

// longWait returns how long a request waits until a time: at least a while, since room in a budget
// is soon there where many wait; the longer, the older the request is; and not all at the same
// time. A change of the policy ends the wait.
func longWait(until time.Time, age time.Duration) time.Duration {
	const least, most = 20 * time.Second, 5 * time.Minute
	return wait.Jitter(min(max(time.Until(until), age/4, least), most), 0.25)
}

// syncTimeout bounds one sync: a few API calls and a signature.
const syncTimeout = 60 * time.Second
