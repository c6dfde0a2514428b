package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// A Lease names the object by which one of many controllers is the one that leads: the others watch
// and wait.
type Lease struct {
	Namespace, Name string
	Identity        string // of this controller among them
}

// Times of the election. client-go's usual ones with a shorter retry: a lease that nobody renews any
// more is taken over within 20 s, one that was given up within 3 s.
const (
	leaseDuration = 15 * time.Second // how long others wait since they last saw it renewed
	renewDeadline = 10 * time.Second // how long the leader acts since it last began to renew it
	retryPeriod   = time.Second
)

// errNotLeading ends a sync that another controller must take.
var errNotLeading = errors.New("another controller leads")

// A leader knows whether this controller leads. client-go promises no fencing: one that was stopped
// and goes on believes for a moment that it still does. So each act asks how old the lease is, by both
// the monotonic clock, which a suspended machine may stop, and the wall clock, which may be set. A nil
// leader is one without an election, and always leads.
type leader struct {
	lease  Lease
	client kubernetes.Interface
	logger hclog.Logger
	fit    func() error
	says   func() map[string]string
	hears  func(map[string]string) error
	begin  func() // this controller leads, and has said at some time before that it does not

	failed   func(error) // a write of the lease has
	observer Observer
	elector  atomic.Pointer[leaderelection.LeaderElector] // nil while it does not stand

	mu      sync.Mutex
	renewed time.Time       // when the last renewal that succeeded began; zero: it does not lead
	term    context.Context // while it leads; ends when it gives the lease up
	endTerm context.CancelFunc
	said    bool // that it does not lead, since then: somebody may have left a request to another
}

// acting returns a context that ends when this controller may act no more, or errNotLeading.
func (l *leader) acting(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if l == nil {
		ctx, cancel := context.WithCancel(ctx)
		return ctx, cancel, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.leads(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithDeadline(ctx, l.renewed.Add(renewDeadline))
	given := context.AfterFunc(l.term, cancel)
	return ctx, func() { given(); cancel() }, nil
}

// fence answers nil while this controller leads.
func (l *leader) fence() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leads()
}

// leads answers nil or errNotLeading. The caller holds the mutex.
func (l *leader) leads() error {
	now := time.Now()
	byWall := now.Round(0).Sub(l.renewed.Round(0)) // Round strips the monotonic reading
	if l.renewed.IsZero() || now.Sub(l.renewed) >= renewDeadline || byWall >= renewDeadline || byWall < 0 {
		l.said = true
		return errNotLeading
	}
	return nil
}

// holder is the identity of the controller that leads, as the lease said when it was last read. It is empty when that
// is not known: nobody leads, or this controller does not stand for election, or the lease, which it held, was lost.
func (l *leader) holder() string {
	if l == nil {
		return ""
	}
	elector := l.elector.Load()
	if elector == nil || elector.IsLeader() && l.fence() != nil {
		return ""
	}
	return elector.GetLeader()
}

// unfitAfter is how long a leader must have been unfit to give the lease up: a fault that passes costs less than
// another leader.
const unfitAfter = 15 * time.Second

// elect takes part in the election while it is fit until the context ends, and then gives the lease up.
func (l *leader) elect(ctx context.Context) {
	for ctx.Err() == nil && l.waitFit(ctx) {
		standing, resign := context.WithCancel(ctx)
		var group wait.Group
		group.StartWithContext(standing, func(ctx context.Context) { l.watchFit(ctx, resign) })
		l.stand(standing)
		resign()
		group.Wait()
	}
}

// waitFit waits until this controller is fit; false: the context has ended.
func (l *leader) waitFit(ctx context.Context) bool {
	return wait.PollUntilContextCancel(ctx, retryPeriod, true, func(context.Context) (bool, error) { return l.fit == nil || l.fit() == nil, nil }) == nil
}

// watchFit gives the lease up when this controller has been unfit for a while.
func (l *leader) watchFit(ctx context.Context, resign func()) {
	well := time.Now()
	_ = wait.PollUntilContextCancel(ctx, retryPeriod, true, func(context.Context) (bool, error) {
		var err error
		if l.fit != nil {
			err = l.fit()
		}
		if err == nil {
			well = time.Now()
		}
		if time.Since(well) < unfitAfter {
			return false, nil
		}
		l.logger.Warn("this controller cannot serve requests, and lets another lead", "lease", l.lease.Name, "error", err)
		resign()
		return true, nil
	})
}

// stand stands for election, and leads, until the context ends.
func (l *leader) stand(ctx context.Context) {
	for ctx.Err() == nil {
		l.standOnce(ctx)
	}
}

// standOnce ends when the lease is lost, or another holds it that this controller held: client-go would
// try for the rest of its deadline to renew it, and only then begin to count how old the other's is.
func (l *leader) standOnce(ctx context.Context) {
	ctx, lost := context.WithCancel(ctx)
	defer lost()
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &watchedLock{Interface: l.lock(), leader: l, lost: lost}, Name: l.lease.Name, ReleaseOnCancel: true,
		LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) {
				l.logger.Info("this controller leads", "lease", l.lease.Name, "identity", l.lease.Identity)
			},
			OnStoppedLeading: func() { l.note(time.Time{}) },
			OnNewLeader: func(identity string) {
				if identity == "" {
					l.logger.Info("the lease was given up", "lease", l.lease.Name)
					return
				}
				l.logger.Info("a controller leads", "lease", l.lease.Name, "identity", identity)
				l.observer.NewLeader()
			},
		},
	})
	if err != nil { // its times are constants, and its lock is ours
		l.logger.Error("no election", "error", err)
		return
	}
	l.elector.Store(elector)
	defer l.elector.Store(nil)
	elector.Run(ctx)
}

func (l *leader) lock() resourcelock.Interface {
	return &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: l.lease.Namespace, Name: l.lease.Name},
		Client:     annotatedLeases{l.client.CoordinationV1(), l.says, l.hears},
		LockConfig: resourcelock.ResourceLockConfig{Identity: l.lease.Identity},
	}
}

// annotatedLeases adds to each write of a lease what else is to be said.
type annotatedLeases struct {
	coordinationclient.LeasesGetter
	says  func() map[string]string
	hears func(map[string]string) error
}

// Leases is client-go's.
func (a annotatedLeases) Leases(namespace string) coordinationclient.LeaseInterface {
	return annotatedLease{a.LeasesGetter.Leases(namespace), a.says, a.hears}
}

type annotatedLease struct {
	coordinationclient.LeaseInterface
	says  func() map[string]string
	hears func(map[string]string) error
}

// Get reads the lease, and shows its annotations.
func (a annotatedLease) Get(ctx context.Context, name string, o metav1.GetOptions) (*coordinationv1.Lease, error) {
	lease, err := a.LeaseInterface.Get(ctx, name, o)
	if err != nil || a.hears == nil {
		return lease, err
	}
	if err := a.hears(lease.Annotations); err != nil {
		return nil, fmt.Errorf("the lease %s is not taken: %w", name, err)
	}
	return lease, nil
}

// Create makes the lease, with the annotations.
func (a annotatedLease) Create(ctx context.Context, lease *coordinationv1.Lease, o metav1.CreateOptions) (*coordinationv1.Lease, error) {
	a.annotate(lease)
	return a.LeaseInterface.Create(ctx, lease, o)
}

// Update writes the lease, with the annotations.
func (a annotatedLease) Update(ctx context.Context, lease *coordinationv1.Lease, o metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	a.annotate(lease)
	updated, err := a.LeaseInterface.Update(ctx, lease, o)
	if tooLarge(err) { // somebody has filled it up, so that nobody could lead
		lease.Labels, lease.OwnerReferences, lease.Finalizers = nil, nil, nil
		updated, err = a.LeaseInterface.Update(ctx, lease, o)
	}
	return updated, err
}

func (a annotatedLease) annotate(lease *coordinationv1.Lease) {
	if a.says == nil {
		return
	}
	if lease.Annotations == nil {
		lease.Annotations = map[string]string{}
	}
	said := a.says()
	maps.Copy(lease.Annotations, said)
	for name, value := range said {
		if value == "" {
			delete(lease.Annotations, name)
		}
	}
}

// note takes note of a renewal, or with a zero time that this controller does not lead. The election tells of no lease that was too
// old for a moment and then renewed, as when the clock is set or this process stood still; what was left to another meanwhile
// is taken up all the same.
func (l *leader) note(renewed time.Time) {
	l.mu.Lock()
	l.renewed = renewed
	begins := l.said && !renewed.IsZero()
	l.said = l.said && !begins
	switch {
	case renewed.IsZero() && l.endTerm != nil:
		l.endTerm()
		l.endTerm = nil
	case !renewed.IsZero() && l.endTerm == nil:
		l.term, l.endTerm = context.WithCancel(context.Background())
	}
	l.mu.Unlock()
	if begins {
		l.begin()
	}
}

// A watchedLock tells the leader of each renewal: the time before it was asked for, since others count
// from when they see it, which is later.
type watchedLock struct {
	resourcelock.Interface
	leader *leader
	lost   func() // another holds the lease that was held
	held   bool   // by this controller, since it stands; of one goroutine
}

// Get reads the lease, and of it only what this controller honours.
func (w *watchedLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := w.Interface.Get(ctx)
	if err == nil {
		honour(record)
	}
	if err == nil && w.held && record.HolderIdentity != w.Identity() {
		w.lost()
	}
	return record, raw, err
}

// honour replaces what one write to the lease could stop every controller with. All controllers hold
// the lease for leaseDuration: with a longer one nobody would take over from a holder that does not
// exist; with a shorter one somebody would take over from a leader that still acts. client-go adds one
// to the number of transitions, which the API server refuses beyond 32 bits.
func honour(record *resourcelock.LeaderElectionRecord) {
	if record.HolderIdentity != "" {
		record.LeaseDurationSeconds = int(leaseDuration / time.Second)
	}
	if record.LeaderTransitions < 0 || record.LeaderTransitions >= math.MaxInt32 {
		record.LeaderTransitions = 0
	}
}

// Create makes the lease, held by this controller.
func (w *watchedLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return w.write(record, func() error { return w.Interface.Create(ctx, record) })
}

// Update takes, renews or gives up the lease.
func (w *watchedLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return w.write(record, func() error { return w.Interface.Update(ctx, record) })
}

func (w *watchedLock) write(record resourcelock.LeaderElectionRecord, write func() error) error {
	began := time.Now()
	if record.HolderIdentity != w.Identity() {
		w.leader.note(time.Time{}) // it is given up: nothing more is done from here on
		return write()
	}
	if err := write(); err != nil {
		w.leader.failed(err)
		return fmt.Errorf("lease: %w", err)
	}
	w.held = true
	w.leader.note(began)
	return nil
}
