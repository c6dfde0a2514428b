package lease

import (
	"context"
	"errors"
	"maps"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"hsm-signer/internal/must"
	"hsm-signer/kube/clientset"
)

// candidate is fit unless fit says otherwise.
type candidate struct {
	fit     func() error
	says    map[string]string
	heard   map[string]string
	written map[string]string
	refuses error
	leads   int // how often it was told that it leads
}

func (c *candidate) Fit() error {
	if c.fit == nil {
		return nil
	}
	return c.fit()
}

func (c *candidate) Annotations() map[string]string { return c.says }

func (c *candidate) Heard(annotations map[string]string) error {
	c.heard = annotations
	return c.refuses
}

func (c *candidate) Written(annotations map[string]string) { c.written = annotations }

func (c *candidate) Leads()         { c.leads++ }
func (c *candidate) Failed(error)   {}
func (c *candidate) Changed(string) {}

// The lease's age counts by both clocks.
func TestFence(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		renewed time.Time
		leads   bool
	}{
		"never":                           {time.Time{}, false},
		"just now":                        {now, true},
		"nearly too long ago":             {now.Add(-renewDeadline + time.Second), true},
		"too long ago":                    {now.Add(-renewDeadline), false},
		"by the wall clock, too long ago": {now.Round(0).Add(-renewDeadline), false},
		// it was set back
		"by the wall clock, in the future": {now.Round(0).Add(time.Minute), false},
	} {
		l := &Election{renewed: c.renewed}
		if err := l.Fence(); (err == nil) != c.leads ||
			err != nil && !errors.Is(err, ErrNotLeading) {
			t.Errorf("renewed %s: %v", name, err)
		}
	}
	if err := (*Election)(nil).Fence(); err != nil {
		t.Errorf("without an election: %v", err)
	}
}

// What is started ends, at the latest, when the lease is too old, and at once when it is given up.
func TestActsEndWithTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Election{candidate: &candidate{}}
		if _, _, err := l.Acting(t.Context()); !errors.Is(err, ErrNotLeading) {
			t.Errorf("before it leads: %v", err)
		}
		for _, givesUp := range []bool{false, true} {
			began := time.Now()
			l.note(began)
			ctx, cancel, err := l.Acting(t.Context())
			must.OK(t, err)
			defer cancel()
			want := renewDeadline
			if givesUp {
				want = time.Second
				time.AfterFunc(want, func() { l.note(time.Time{}) })
			}
			if <-ctx.Done(); time.Since(began) != want {
				t.Errorf("gives up %t: it ended after %s; want %s", givesUp,
					time.Since(began), want)
			}
		}
	})
}

// A term is settled after a minute, if it was not interrupted: another may have led in between.
func TestSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if !(*Election)(nil).Settled() {
			t.Error("without an election: not settled")
		}
		l := &Election{candidate: &candidate{}}
		lead := func(period time.Duration) {
			for end := time.Now().Add(period); time.Now().Before(end); time.Sleep(retryPeriod) {
				l.note(time.Now())
			}
			l.note(time.Now())
		}
		lead(settled - time.Second)
		early := l.Settled()
		lead(time.Second)
		late := l.Settled()
		l.note(time.Time{})
		lead(settled / 2)
		if after := l.Settled(); early || !late || after {
			t.Errorf("before a minute %t, after it %t, in the next term %t", early, late, after)
		}
	})
}

// Whatever was left to another is served again: also when the lease was never lost, and too old
// for a moment.
func TestWhatWasLeftToAnotherIsTakenUp(t *testing.T) {
	c := &candidate{}
	l := &Election{candidate: c}
	for _, step := range []struct {
		renewed time.Time
		leads   bool
		told    int
	}{
		{time.Time{}, false, 0},
		{time.Now(), true, 1},                   // it was elected
		{time.Now(), true, 1},                   // renewed
		{time.Now().Add(time.Minute), false, 1}, // the clock was set back
		{time.Now(), true, 2},
		{time.Now().Add(-renewDeadline), false, 2}, // it stood still
		{time.Now(), true, 3},
		{time.Time{}, false, 3}, // another leads
	} {
		if l.note(step.renewed); (l.Fence() == nil) != step.leads || c.leads != step.told {
			t.Errorf("renewed %s: leads %t, was told %d times; want %+v", step.renewed,
				l.Fence() == nil, c.leads, step)
		}
	}
}

// A controller that is not fit does not stand for election; and the election ends with its context,
// fit or not.
func TestOnlyWhoIsFitStands(t *testing.T) {
	asked, fit := make(chan struct{}), errors.New("no token")
	ctx, cancel := context.WithCancel(t.Context())
	l := &Election{logger: hclog.NewNullLogger(), candidate: &candidate{fit: func() error {
		select {
		case asked <- struct{}{}:
		case <-ctx.Done():
		}
		return fit
	}}} // it has no client: standing for election would panic
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.Run(ctx)
	}()
	<-asked
	<-asked
	cancel()
	<-ended
	fit = nil
	l.Run(ctx)
}

// A leader that stays unfit gives the lease up, and one that is unfit for a moment does not.
func TestUnfitLeaderResigns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, wellAgain := time.Now(), 10*time.Second
		l := &Election{logger: hclog.NewNullLogger(), candidate: &candidate{fit: func() error {
			if since := time.Since(began); since < wellAgain || since > time.Minute {
				return errors.New("the disk is full")
			}
			return nil
		}}}
		resigned := time.Duration(0)
		l.watchFit(t.Context(), func() { resigned = time.Since(began) })
		if resigned < time.Minute || resigned > time.Minute+unfitAfter+2*retryPeriod {
			t.Errorf("it resigned after %s", resigned)
		}
	})
}

// server is an API server with at most one lease. A write of another version than the one that it
// has is a conflict.
type server struct {
	clientset.Interface
	mu    sync.Mutex
	lease *coordinationv1.Lease
	fails error // of each call
}

// fail has each call fail from now on; nil: none.
func (s *server) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails = err
}

// store replaces the lease.
func (s *server) store(lease *coordinationv1.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lease = lease
}

// stored returns a copy of the lease.
func (s *server) stored() *coordinationv1.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lease.DeepCopy()
}

func (s *server) Leases(string) clientset.Leases { return s }

func (s *server) Get(context.Context, string, metav1.GetOptions) (*coordinationv1.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{}, "l")
	}
	return s.lease.DeepCopy(), s.fails
}

func (s *server) Create(_ context.Context, lease *coordinationv1.Lease,
	_ metav1.CreateOptions) (*coordinationv1.Lease, error) {
	return s.write(lease, func() bool { return s.lease == nil })
}

func (s *server) Update(_ context.Context, lease *coordinationv1.Lease,
	_ metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	return s.write(lease, func() bool {
		return s.lease != nil && s.lease.ResourceVersion == lease.ResourceVersion
	})
}

func (s *server) write(lease *coordinationv1.Lease, current func() bool) (*coordinationv1.Lease,
	error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.fails != nil:
		return nil, s.fails
	case !current():
		return nil, apierrors.NewConflict(schema.GroupResource{}, "l", nil)
	case len(lease.Labels) > 0: // somebody has filled it with labels up to etcd's limit
		return nil, apierrors.NewInternalError(errors.New("etcdserver: request is too large"))
	}
	s.lease = lease.DeepCopy()
	s.lease.ResourceVersion += "+"
	return s.lease.DeepCopy(), nil
}

// holder returns who holds the lease, and how often it passed to another.
func (s *server) holder() (string, int32) {
	lease := s.stored()
	return *lease.Spec.HolderIdentity, *lease.Spec.LeaseTransitions
}

// stand has a controller stand for election until the function that it returns is called.
func (s *server) stand(t *testing.T, identity string, c *candidate) (e *Election, stop func()) {
	t.Helper()
	e = New(Lease{Namespace: "n", Name: "l", Identity: identity}, s, c, hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		e.Run(ctx)
	}()
	return e, func() { cancel(); <-ended }
}

// One controller leads. The other takes over at once when it gives the lease up, and after 15 s
// when it only stops renewing it, as one that has lost the API server.
func TestElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		a, stopA := s.stand(t, "a", &candidate{})
		synctest.Wait()
		b, stopB := s.stand(t, "b", &candidate{})
		time.Sleep(time.Minute)
		if a.Fence() != nil || b.Fence() == nil || a.Holder() != "a" || b.Holder() != "a" {
			t.Errorf("%v leads by a, %v by b; want a", a.Holder(), b.Holder())
		}
		stopA()
		if holder, _ := s.holder(); holder != "" || a.Fence() == nil || a.Holder() != "" {
			t.Errorf("%q holds a lease that was given up; a still leads: %v", holder, a.Fence())
		}
		time.Sleep(3 * time.Second)
		if holder, passed := s.holder(); holder != "b" || passed != 2 || b.Fence() != nil {
			t.Errorf("%s leads after %d transitions; want b after 2", holder, passed)
		}

		cut := &server{lease: s.stored()} // b writes to another server than it thinks
		c, stopC := cut.stand(t, "c", &candidate{})
		time.Sleep(leaseDuration - time.Second)
		if c.Fence() == nil {
			t.Error("c took a lease that may be held")
		}
		time.Sleep(4 * time.Second)
		if c.Fence() != nil {
			t.Error("c did not take a lease that nobody renews")
		}
		s.store(cut.stored()) // b is back
		time.Sleep(2 * time.Second)
		if b.Fence() == nil || b.Holder() != "c" {
			t.Errorf("b believes that %q leads; want c", b.Holder())
		}
		stopC()
		stopB()
	})
}

// Nobody takes a lease that was deleted while its holder, which is cut off, may still act.
func TestDeletedLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		a, stopA := s.stand(t, "a", &candidate{})
		synctest.Wait()
		cut := &server{lease: s.stored()}
		b, stopB := cut.stand(t, "b", &candidate{})
		time.Sleep(2 * retryPeriod)
		cut.store(nil)
		s.fail(apierrors.NewInternalError(errors.New("cut off")))
		for range leaseDuration / time.Second {
			time.Sleep(time.Second)
			if a.Fence() == nil && b.Fence() == nil {
				t.Fatal("both lead")
			}
		}
		time.Sleep(3 * retryPeriod)
		if holder, passed := cut.holder(); b.Fence() != nil || holder != "b" || passed != 2 {
			t.Errorf("%s leads after %d transitions; want b after 2", holder, passed)
		}
		stopB()
		stopA()
	})
}

// A leader whose renewals fail stops to act before another may take over, and leads again when they
// succeed.
func TestRenewalsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := &server{}, &candidate{}
		e, stop := s.stand(t, "a", c)
		synctest.Wait()
		s.fail(apierrors.NewInternalError(errors.New("no quorum")))
		time.Sleep(renewDeadline)
		if e.Fence() == nil || e.Holder() != "" {
			t.Errorf("it acts on a lease that it cannot renew; %q leads", e.Holder())
		}
		s.fail(nil)
		time.Sleep(2 * time.Second)
		if e.Fence() != nil || c.leads != 1 {
			t.Errorf("%v; it was told %d times that it leads; want 1", e.Fence(), c.leads)
		}
		stop()
	})
}

// Whatever somebody writes to the lease, a holder counts for as long as every controller leads,
// and the number of transitions stays one that the API server takes.
func TestOnlyOurOwnTimesAreHonoured(t *testing.T) {
	for _, c := range []struct {
		holder               string
		seconds, transitions int32
		takenAfter           time.Duration
		transitionsThen      int32
	}{
		{"nobody", math.MaxInt32, 7, leaseDuration, 8},
		{"nobody", 1, 7, leaseDuration, 8},
		{"nobody", -5, -5, leaseDuration, 1},
		{"nobody", 15, math.MaxInt32, leaseDuration, 0},
		{"nobody", 15, math.MaxInt32 - 1, leaseDuration, math.MaxInt32},
		{"", 15, 7, 0, 8},  // it was given up
		{"a", 15, 7, 0, 7}, // this controller held it before a restart
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &server{lease: &coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{ResourceVersion: "1"},
				Spec: coordinationv1.LeaseSpec{HolderIdentity: &c.holder,
					LeaseDurationSeconds: &c.seconds, LeaseTransitions: &c.transitions},
			}}
			e, stop := s.stand(t, "a", &candidate{})
			if c.takenAfter > 0 {
				time.Sleep(c.takenAfter - time.Millisecond)
				if e.Fence() == nil {
					t.Errorf("%+v: it was taken at once", c)
				}
				time.Sleep(3 * retryPeriod)
			}
			synctest.Wait()
			if holder, passed := s.holder(); holder != "a" || passed != c.transitionsThen {
				t.Errorf("%+v: %s holds it, after %d transitions", c, holder, passed)
			}
			stop()
		})
	}
}

// A lease that was filled up is emptied of what others wrote, and keeps what hsm-signer writes.
func TestLeaseThatWasFilledUp(t *testing.T) {
	says := map[string]string{"hsm-signer/journal": "j"}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		ResourceVersion: "1", Labels: map[string]string{"a": "b"},
		OwnerReferences: []metav1.OwnerReference{{Name: "o"}}, Finalizers: []string{"f"},
	}}
	s := &server{lease: lease}
	l := elector{Election: New(Lease{Identity: "a"}, s, &candidate{says: says},
		hclog.NewNullLogger()), leases: s}
	if l.try(t.Context()); !l.held || !maps.Equal(s.lease.Annotations, says) {
		t.Errorf("held: %t; %+v", l.held, s.lease)
	}
}

// What the lease says is shown before it can be taken, and what is said of others stays.
func TestAnnotationsOfTheLease(t *testing.T) {
	c := &candidate{says: map[string]string{"ours": "2", "old": ""}}
	s := &server{lease: &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		ResourceVersion: "1",
		Annotations:     map[string]string{"of/another": "1", "old": "1", "empty": ""},
	}}}
	l := elector{Election: New(Lease{Identity: "a"}, s, c, hclog.NewNullLogger()), leases: s}
	c.refuses = errors.New("the journal was rolled back")
	if l.try(t.Context()); l.held || s.lease.Spec.HolderIdentity != nil {
		t.Errorf("the lease was taken: %+v", s.lease)
	}
	c.refuses = nil
	l.try(t.Context())
	want := map[string]string{"of/another": "1", "ours": "2", "empty": ""}
	if !l.held || c.heard["of/another"] != "1" || !maps.Equal(s.lease.Annotations, want) ||
		!maps.Equal(c.written, want) {
		t.Errorf("held: %t; it was shown %v and wrote %v; the lease says %v, want %v", l.held,
			c.heard, c.written, s.lease.Annotations, want)
	}
}

// A candidate that does not want a lease without annotations does not create one.
func TestMissingLeaseIsHeard(t *testing.T) {
	c := &candidate{heard: map[string]string{"before": ""}, refuses: errors.New("it was deleted")}
	s := &server{}
	l := elector{Election: New(Lease{Identity: "a"}, s, c, hclog.NewNullLogger()), leases: s}
	if l.try(t.Context()); l.held || s.lease != nil || c.heard != nil || c.written != nil {
		t.Errorf("held: %t; %+v; it was shown %v", l.held, s.lease, c.heard)
	}
	c.refuses = nil
	if l.try(t.Context()); !l.held || s.lease == nil {
		t.Errorf("held: %t; %+v", l.held, s.lease)
	}
}
