package kube

import (
	"errors"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/types"

	"hsm-signer/kube/csr"
	"hsm-signer/kube/request"
)

// openCSR returns a request in a state, as the store has it.
func openCSR(uid string, state request.State) request.Object {
	return (&csr.API{}).Whole(newCSR("example.com/a",
		func(r *certificatesv1.CertificateSigningRequest) {
			r.UID = types.UID(uid)
			conditions := map[request.State]certificatesv1.RequestConditionType{
				request.Approved: certificatesv1.CertificateApproved,
				request.Refused:  certificatesv1.CertificateDenied,
			}
			if c, is := conditions[state]; is {
				r.Status.Conditions = append(r.Status.Conditions, condition(c, "True"))
			}
		}))
}

const anyTime = -1

// requireOpen requires that these are open and no others, and how long they have waited.
func requireOpen(t *testing.T, c *Controller, step string, want map[OpenState]int,
	unanswered time.Duration) {
	t.Helper()
	got := c.open.count(time.Now())
	maps.DeleteFunc(got.States, func(_ OpenState, n int) bool { return n == 0 })
	if !maps.Equal(got.States, want) ||
		unanswered != anyTime && got.Unanswered != unanswered {
		t.Errorf("%s: %v, without an answer for %s; want %v, %s", step, got.States, got.Unanswered,
			want, unanswered)
	}
}

func TestOpenRequestsAreCountedByState(t *testing.T) {
	pending := openCSR("1", request.Pending)
	for name, step := range map[string]struct {
		mode   Mode
		result Result
		err    error
		want   OpenState // empty: it is not counted any more
	}{
		"before its sync":  {Approve, resultNone, errLookAgain, OpenPending},
		"a fault":          {Approve, resultNone, errors.New("no token"), OpenFailing},
		"waits":            {Approve, ResultWaiting, errLookAgain, OpenWaiting},
		"over budget":      {Approve, ResultOverBudget, errLookAgain, OpenOverBudget},
		"held":             {Approve, ResultHeld, errLookAgain, OpenRefusalHeld},
		"issued":           {Approve, ResultIssued, nil, ""},
		"cannot be denied": {Approve, ResultRefused, nil, ""},
		"not ours":         {Approve, resultNone, nil, ""},
		"not approved":     {Wait, resultNone, nil, OpenUnapproved},
	} {
		c := &Controller{Config: Config{Mode: step.mode}}
		c.open.seen(keyOf(pending), c.openState(pending), time.Now())
		c.noteOpen(pending, step.result, step.err)
		counts := c.open.count(time.Now())
		if step.want == "" && len(c.open.all) > 0 ||
			step.want != "" && counts.States[step.want] != 1 {
			t.Errorf("%s: %v", name, counts.States)
		}
		if len(counts.States) != len(OpenStates) {
			t.Errorf("%s: a state is missing: %v", name, counts.States)
		}
	}
	c := &Controller{Config: Config{Mode: Wait}}
	c.open.seen(keyOf(pending), OpenUnapproved, time.Now())
	c.noteOpen(pending, resultNone, nil)
	approved := openCSR("1", request.Approved)
	c.open.seen(keyOf(approved), c.openState(approved), time.Now())
	requireOpen(t, c, "approved by somebody", map[OpenState]int{OpenApproved: 1},
		anyTime)
}

// The time without an answer begins when a request becomes due, begins again with each answer, and
// continues when clients give up and ask again.
func TestTimeWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Controller{Config: Config{Mode: Approve}}
		one, two := openCSR("1", request.Pending), openCSR("2", request.Pending)
		seen := func(r request.Object) { c.open.seen(keyOf(r), c.openState(r), time.Now()) }
		type counts = map[OpenState]int
		<-time.After(time.Hour)
		requireOpen(t, c, "idle", counts{}, 0)
		seen(one)
		<-time.After(10 * time.Second)
		seen(two)
		requireOpen(t, c, "two", counts{OpenPending: 2}, 10*time.Second)
		c.noteOpen(one, ResultIssued, nil)
		<-time.After(5 * time.Second)
		requireOpen(t, c, "one is answered", counts{OpenPending: 1}, 5*time.Second)
		c.open.synced(keyOf(two), OpenHeld)
		<-time.After(30 * time.Second)
		requireOpen(t, c, "held back", counts{OpenHeld: 1}, 0)
		c.noteOpen(two, resultNone, errors.New("no token"))
		<-time.After(80 * time.Second)
		c.open.synced(keyOf(two), OpenHeld)
		c.open.closed(keyOf(two), false)
		requireOpen(t, c, "deleted", counts{}, 0)
		<-time.After(20 * time.Second)
		seen(one)
		requireOpen(t, c, "asked again", counts{OpenPending: 1}, 100*time.Second)
		c.open.reset()
		seen(one)
		requireOpen(t, c, "listed again", counts{OpenPending: 1}, 100*time.Second)
		c.open.others()
		requireOpen(t, c, "another leads", counts{OpenPending: 1}, 0)
		c.open.closed(keyOf(one), false)
		<-time.After(time.Hour)
		seen(two)
		requireOpen(t, c, "much later", counts{OpenPending: 1}, 0)
	})
}

// What the watch shows is counted, whoever answers.
func TestOpenRequestsFollowTheWatch(t *testing.T) {
	c, _ := withStore(t, &remembering{}, func() bool { return true })
	pending, denied := openCSR("1", request.Pending), openCSR("1", request.Refused)
	c.added(pending)
	requireOpen(t, c, "added", map[OpenState]int{OpenPending: 1},
		anyTime)
	if !c.open.lastAnswer().IsZero() {
		t.Error("nothing was answered")
	}
	c.updated(pending, denied)
	requireOpen(t, c, "denied by somebody", map[OpenState]int{}, 0)
	if c.open.lastAnswer().IsZero() {
		t.Error("the answer was not noted")
	}
	c.added(pending)
	c.deleted(pending)
	requireOpen(t, c, "deleted", map[OpenState]int{}, 0)
}
