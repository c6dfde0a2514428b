package lease

import (
	"context"
	"errors"
	"maps"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// candidate is fit unless fit says otherwise.
type candidate struct {
	fit     func() error
	says    map[string]string
	heard   map[string]string
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
			if err != nil {
				t.Fatal(err)
			}
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

// recordLock is a lease that says what the record does.
type recordLock struct {
	resourcelock.Interface
	record resourcelock.LeaderElectionRecord
}

func (r recordLock) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record := r.record
	return &record, nil, nil
}

// Whatever somebody writes to the lease, a holder counts for as long as every controller leads,
// and the number of transitions stays one that the API server takes.
func TestOnlyOurOwnTimesAreHonoured(t *testing.T) {
	const ours = int(leaseDuration / time.Second)
	for _, c := range []struct {
		holder                                         string
		seconds, transitions, honoured, transitionsNow int
	}{
		{"nobody", math.MaxInt32, 7, ours, 7},
		{"nobody", 1, 7, ours, 7},
		{"nobody", -5, -5, ours, 0},
		{"nobody", ours, math.MaxInt32, ours, 0},
		{"nobody", ours, math.MaxInt32 - 1, ours, math.MaxInt32 - 1},
		{"", 1, 7, 1, 7}, // it was given up
	} {
		w := &watchedLock{Interface: recordLock{record: resourcelock.LeaderElectionRecord{
			HolderIdentity: c.holder, LeaseDurationSeconds: c.seconds,
			LeaderTransitions: c.transitions,
		}}}
		record, _, err := w.Get(t.Context())
		if err != nil || record.LeaseDurationSeconds != c.honoured ||
			record.LeaderTransitions != c.transitionsNow {
			t.Errorf("%+v: %d s, %d transitions, %v", c, record.LeaseDurationSeconds,
				record.LeaderTransitions, err)
		}
	}
}

// fullLease is one that somebody has filled with labels up to etcd's limit.
type fullLease struct {
	coordinationclient.LeaseInterface
}

func (fullLease) Update(_ context.Context, lease *coordinationv1.Lease,
	_ metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	if len(lease.Labels) > 0 || len(lease.OwnerReferences) > 0 || len(lease.Finalizers) > 0 {
		return nil, apierrors.NewInternalError(errors.New("etcdserver: request is too large"))
	}
	return lease, nil
}

// A lease that was filled up is emptied of what others wrote, and keeps what hsm-signer writes.
func TestLeaseThatWasFilledUp(t *testing.T) {
	says := map[string]string{"hsm-signer/journal": "j"}
	a := annotatedLease{fullLease{}, &candidate{says: says}}
	for _, meta := range []metav1.ObjectMeta{{Labels: map[string]string{"a": "b"}},
		{OwnerReferences: []metav1.OwnerReference{{Name: "o"}}}, {Finalizers: []string{"f"}}, {}} {
		updated, err := a.Update(t.Context(), &coordinationv1.Lease{ObjectMeta: meta},
			metav1.UpdateOptions{})
		if err != nil || !maps.Equal(updated.Annotations, says) {
			t.Errorf("%+v: %v, %v", meta, updated, err)
		}
	}
}

// What the lease says is shown before it can be taken, and what is said of others stays.
func TestAnnotationsOfTheLease(t *testing.T) {
	c := &candidate{says: map[string]string{"ours": "2", "old": ""}}
	client := fake.NewClientset(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		Namespace: "n", Name: "l",
		Annotations: map[string]string{"of/another": "1", "old": "1", "empty": ""},
	}})
	leases := annotatedLeases{client.CoordinationV1(), c}.Leases("n")
	lease, err := leases.Get(t.Context(), "l", metav1.GetOptions{})
	if err != nil || c.heard["of/another"] != "1" {
		t.Fatalf("%v; it was shown %v", err, c.heard)
	}
	lease, err = leases.Update(t.Context(), lease, metav1.UpdateOptions{})
	if want := map[string]string{"of/another": "1", "ours": "2", "empty": ""}; err != nil ||
		!maps.Equal(lease.Annotations, want) {
		t.Errorf("%v: %v; want %v", err, lease.Annotations, want)
	}
	c.refuses = errors.New("the journal was rolled back")
	if _, err := leases.Get(t.Context(), "l", metav1.GetOptions{}); !errors.Is(err, c.refuses) {
		t.Errorf("the lease can be taken: %v", err)
	}
}
