package lease

import (
	"context"
	"fmt"
	"maps"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"hsm-signer/kube/apifault"
	"hsm-signer/kube/clientset"
)

// An elector takes, renews and gives up the lease for an election, by the protocol of client-go's
// leader election. It is for one goroutine.
type elector struct {
	*Election
	leases  clientset.Leases
	seen    *coordinationv1.Lease // the lease as last read or written; without a version: none
	changed time.Time             // when it was last seen to change, or written
	held    bool                  // by this controller, as far as it knows
	fault   string                // what was logged last
}

// try takes the lease if it is free, and renews it if this controller holds it.
func (e *elector) try(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, renewDeadline)
	defer cancel()
	if e.held && e.fresh() && e.claim(ctx) == nil {
		return // nobody has written it since this controller did
	}
	err := e.read(ctx)
	if err == nil && e.free() {
		err = e.claim(ctx)
	}
	e.log(err)
}

// log logs a fault once. It is none that another controller was faster.
func (e *elector) log(err error) {
	switch {
	case err == nil:
		e.fault = ""
	case apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || err.Error() == e.fault:
	default:
		e.logger.Warn("the lease cannot be taken or renewed now", "lease", e.lease.Name,
			"error", err)
		e.fault = err.Error()
	}
}

// read reads the lease, and shows the candidate its annotations; a missing lease has none. It notes
// if another controller has come to hold it.
func (e *elector) read(ctx context.Context) error {
	lease, err := e.leases.Get(ctx, e.lease.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if err := e.candidate.Heard(nil); err != nil {
			return fmt.Errorf("the lease %s is not created: %w", e.lease.Name, err)
		}
		e.seen = e.gone()
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the lease: %w", err)
	}
	if err := e.candidate.Heard(lease.Annotations); err != nil {
		return fmt.Errorf("the lease %s is not taken: %w", lease.Name, err)
	}
	if e.seen == nil || !equality.Semantic.DeepEqual(e.seen.Spec, lease.Spec) {
		e.changed = time.Now()
	}
	e.seen = lease
	if e.held && holderOf(lease) != e.lease.Identity {
		e.held = false
		e.note(time.Time{})
	}
	e.observe(holderOf(lease))
	return nil
}

// gone returns the lease that is to be created. One that somebody deleted counts as held by whoever
// held it: that controller may be cut off from the API server, and still act.
func (e *elector) gone() *coordinationv1.Lease {
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		Namespace: e.lease.Namespace, Name: e.lease.Name,
	}}
	if e.seen != nil {
		lease.Spec = e.seen.Spec
	}
	return lease
}

// free reports whether this controller may take the lease. All controllers hold it for
// leaseDuration, whatever it says itself. With a longer one nobody would take over from a holder
// that does not exist; with a shorter one somebody would take over from a leader that still acts.
func (e *elector) free() bool {
	holder := holderOf(e.seen)
	return holder == "" || holder == e.lease.Identity ||
		time.Since(e.changed) >= leaseDuration
}

// claim writes that this controller holds the lease as of now. Others count from when they see
// that, which is later.
func (e *elector) claim(ctx context.Context) error {
	started, identity := time.Now(), e.lease.Identity
	spec := specOf(identity, leaseDuration, transitionsOf(e.seen))
	if holderOf(e.seen) == identity {
		spec.AcquireTime = e.seen.Spec.AcquireTime
	} else { // the API server refuses a negative number, which the largest one would become
		*spec.LeaseTransitions = max(0, *spec.LeaseTransitions+1)
	}
	if err := e.write(ctx, spec); err != nil {
		e.candidate.Failed(err)
		return fmt.Errorf("write the lease: %w", err)
	}
	if leads := e.held && e.fresh(); !leads {
		e.logger.Info("this controller leads", "lease", e.lease.Name, "identity", identity)
	}
	e.held = true
	e.note(started)
	e.observe(identity)
	return nil
}

// giveUp writes that nobody holds the lease, if this controller does. A renewal whose answer was
// lost is a conflict, after which the lease is read again.
func (e *elector) giveUp() {
	if !e.held {
		return
	}
	e.held = false
	e.note(time.Time{}) // nothing more is done from here on
	ctx, cancel := context.WithTimeout(context.Background(), renewDeadline)
	defer cancel()
	for {
		err := e.read(ctx)
		if err == nil && holderOf(e.seen) != e.lease.Identity {
			return
		}
		if err == nil {
			err = e.write(ctx, specOf("", time.Second, transitionsOf(e.seen)))
		}
		if err == nil {
			e.observe("")
			return
		}
		if !apierrors.IsConflict(err) {
			e.logger.Warn("the lease was not given up; others take it after "+
				leaseDuration.String(), "lease", e.lease.Name, "error", err)
			return
		}
	}
}

// write creates or replaces the lease, with the candidate's annotations.
func (e *elector) write(ctx context.Context, spec coordinationv1.LeaseSpec) error {
	lease := e.seen.DeepCopy()
	lease.Spec = spec
	annotate(lease, e.candidate.Annotations())
	write := func() (*coordinationv1.Lease, error) {
		if lease.ResourceVersion == "" {
			return e.leases.Create(ctx, lease, metav1.CreateOptions{})
		}
		return e.leases.Update(ctx, lease, metav1.UpdateOptions{})
	}
	written, err := write()
	if apifault.TooLarge(err) { // somebody has filled it up, so that nobody could lead
		lease.Labels, lease.OwnerReferences, lease.Finalizers = nil, nil, nil
		written, err = write()
	}
	if err != nil {
		return err
	}
	e.seen, e.changed = written, time.Now()
	e.candidate.Written(written.Annotations)
	return nil
}

// annotate sets these annotations of the lease, and removes those with an empty value.
func annotate(lease *coordinationv1.Lease, annotations map[string]string) {
	if lease.Annotations == nil {
		lease.Annotations = map[string]string{}
	}
	maps.Copy(lease.Annotations, annotations)
	for name, value := range annotations {
		if value == "" {
			delete(lease.Annotations, name)
		}
	}
}

// holderOf returns the identity of the lease's holder, or "" if nobody holds it.
func holderOf(lease *coordinationv1.Lease) string {
	if lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *lease.Spec.HolderIdentity
}

// transitionsOf returns how often the lease has passed to another, as far as that can be believed.
func transitionsOf(lease *coordinationv1.Lease) int32 {
	if lease.Spec.LeaseTransitions == nil {
		return 0
	}
	return max(0, *lease.Spec.LeaseTransitions)
}

// specOf returns what a lease says that the holder has as of now; "" is nobody.
func specOf(holder string, duration time.Duration, transitions int32) coordinationv1.LeaseSpec {
	now := metav1.NowMicro()
	return coordinationv1.LeaseSpec{
		HolderIdentity: &holder, LeaseDurationSeconds: new(int32(duration / time.Second)),
		AcquireTime: &now, RenewTime: &now, LeaseTransitions: &transitions,
	}
}

// pause returns how long to wait before the next try. Those who wait for the lease do not all try
// at once.
func (e *elector) pause() time.Duration {
	if e.held {
		return retryPeriod
	}
	return wait.Jitter(retryPeriod, 1.2)
}
