package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"hsm-signer/internal/must"
	"hsm-signer/kube/access"
	"hsm-signer/kube/csr"
	"hsm-signer/kube/lease"
	"hsm-signer/kube/request"
)

const keep = 5 * time.Minute // of the tests' requests

// onRecord are answers that are on the disk: certificates that are "own", and refusals of these
// UIDs.
type onRecord struct {
	refusals []string
	fault    error
	searches int
}

func (o *onRecord) Delivered(_ string, chain []byte) (bool, error) {
	return string(chain) == "own", o.fault
}

func (o *onRecord) Refused(uids []string) (map[string]bool, error) {
	o.searches++
	found := map[string]bool{}
	for _, uid := range uids {
		found[uid] = slices.Contains(o.refusals, uid)
	}
	return found, o.fault
}

// deleting is an API server that deletes what it is asked to, or fails with an error.
type deleting struct {
	csr.Client
	deleted []string
	fails   error
}

func (d *deleting) Delete(_ context.Context, name string, o metav1.DeleteOptions) error {
	if d.fails != nil {
		return d.fails
	}
	if p := o.Preconditions; p == nil || p.UID == nil || *p.UID != types.UID(name) ||
		p.ResourceVersion == nil {
		return fmt.Errorf("%s is deleted without its preconditions: %v", name, p)
	}
	d.deleted = append(d.deleted, name)
	return nil
}

// A cleaning is a controller with a clock that stands still, and requests to delete.
type cleaning struct {
	*Controller
	t      *testing.T
	clock  time.Time
	server *deleting
	record *onRecord
	add    func(uid, certificate string,
		conditions ...certificatesv1.CertificateSigningRequestCondition)
}

func newCleaning(t *testing.T) *cleaning {
	t.Helper()
	c := &cleaning{t: t, clock: time.Now(), server: &deleting{}, record: &onRecord{}}
	c.Controller, c.add = withStore(t, &remembering{told: map[string]string{}}, func() bool {
		return true
	})
	c.watches = nil
	c.DeleteFinishedAfter, c.Answers = keep, c.record
	apiOf(c.Controller).Client = c.server
	c.cleaner = newCleaner(keep, c.record)
	c.cleaner.now = func() time.Time { return c.clock }
	return c
}

// after lets time pass, looking each second, and returns what was deleted meanwhile. What was
// deleted is gone.
func (c *cleaning) after(d time.Duration) []string {
	c.server.deleted = nil
	for end := c.clock.Add(d); c.clock.Before(end); c.clock = c.clock.Add(time.Second) {
		for c.cleanUpOnce(c.t.Context()) {
			c.remove(c.server.deleted...)
		}
		c.remove(c.server.deleted...)
	}
	slices.Sort(c.server.deleted)
	return c.server.deleted
}

func (c *cleaning) remove(uids ...string) {
	for _, uid := range uids {
		object :=
			&certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: uid}}
		if err := c.requests.Load().stores[0].Delete(object); err != nil {
			c.t.Fatal(err)
		}
	}
}

var (
	approval = condition(certificatesv1.CertificateApproved, corev1.ConditionTrue)
	denial   = condition(certificatesv1.CertificateDenied, corev1.ConditionTrue)
	failure  = condition(certificatesv1.CertificateFailed, corev1.ConditionTrue)
)

// Only what is finished and on record is deleted, and not before its time.
func TestOnlyRecordedRequestsAreDeleted(t *testing.T) {
	c := newCleaning(t)
	c.record.refusals = []string{"denied", "failed", "denied with a certificate"}
	c.add("issued", "own", approval)
	c.add("denied", "", denial)
	c.add("failed", "", approval, failure)
	for uid, certificate := range map[string]string{
		"foreign": "foreign", "unrecorded": "unrecorded", "another journal": "another",
	} {
		c.add(uid, certificate, approval)
	}
	c.add("not approved", "own")
	c.add("denied with a certificate", "own", denial)
	c.add("failed with a certificate", "own", approval, failure)
	c.add("denied by someone", "", denial)
	for uid, signer := range map[string]string{"another signer": "example.com/b", "no signer": ""} {
		err := c.requests.Load().stores[0].Add(apiOf(c.Controller).Whole(
			newCSR(signer, func(made *certificatesv1.CertificateSigningRequest) {
				made.Name, made.UID, made.Status.Certificate = uid, types.UID(uid), []byte("own")
				made.Status.Conditions =
					[]certificatesv1.CertificateSigningRequestCondition{approval}
			})))
		must.OK(t, err)
	}
	c.Kind = csr.Kind{SignerNames: c.SignerNames, AcceptUnset: true}
	if got := c.after(keep); len(got) > 0 {
		t.Errorf("deleted before their time: %q", got)
	}
	if got, want := c.after(3*keep),
		[]string{"denied", "failed", "issued"}; !slices.Equal(got, want) {
		t.Errorf("deleted %q; want %q", got, want)
	}
	if n := c.Sinks[0].(*counting).deleted; n != 3 || c.CleanUpFault() != nil {
		t.Errorf("%d were counted; %v", n, c.CleanUpFault())
	}
}

// Nothing is deleted while a request is open, nor soon after. One that nobody can wait for any more
// keeps nothing from being deleted.
func TestNothingIsDeletedWhileClientsWait(t *testing.T) {
	c := newCleaning(t)
	c.add("first", "own", approval)
	c.after(keep - time.Second)
	c.add("waiting", "", approval)
	if got := c.after(clientPatience); len(got) > 0 {
		t.Errorf("deleted while one waits: %q", got)
	}
	if got := c.after(quietTime - time.Second); len(got) > 0 {
		t.Errorf("deleted soon after: %q", got)
	}
	if got := c.after(time.Minute); !slices.Equal(got, []string{"first"}) {
		t.Errorf("deleted while one is open for long: %q", got)
	}
	c.add("second", "own", approval)
	c.after(keep)
	c.add("third", "own", approval) // it was answered before anybody looked
	if got := c.after(quietTime); len(got) > 0 {
		t.Errorf("deleted soon after one was new: %q", got)
	}
	c.add("waiting", "own", approval)
	if got := c.after(quietTime); len(got) > 0 {
		t.Errorf("deleted soon after one was answered: %q", got)
	}
	if got := c.after(time.Minute); !slices.Equal(got, []string{"second"}) {
		t.Errorf("deleted in the end: %q", got)
	}
}

// A request is kept from when it was answered, not from when it was made.
func TestTimeCountsFromTheAnswer(t *testing.T) {
	c := newCleaning(t)
	c.add("late", "", approval)
	c.after(2 * keep)
	c.add("late", "own", approval)
	if got := c.after(keep); len(got) > 0 {
		t.Errorf("deleted %q at once", got)
	}
	if got := c.after(time.Minute); len(got) != 1 {
		t.Errorf("deleted %q after its time", got)
	}
	if n := len(c.cleaner.seen); n != 0 {
		t.Errorf("%d requests that are gone are remembered", n)
	}
}

// An unfit process has no token.
type unfit struct{ Process }

func (unfit) Fit() error { return errors.New("no token") }

// Who does not lead, cannot sign, does not see all requests or may not delete deletes nothing.
func TestWhoCannotAnswerDeletesNothing(t *testing.T) {
	for name, hinder := range map[string]func(c *cleaning){
		"does not lead": func(c *cleaning) {
			c.election = lease.New(lease.Lease{}, nil, candidate{c.Controller}, c.Logger)
		},
		"is not fit":     func(c *cleaning) { c.Process = unfit{} },
		"does not watch": func(c *cleaning) { c.watching("", errStarting) },
		"has not listed": func(c *cleaning) {
			c.requests.Load().synced[0] = func() bool { return false }
		},
		"may not delete": func(c *cleaning) {
			c.access = access.NewWatch(&allBut{"delete certificatesigningrequests"},
				accessUser{c.Controller}, c.Logger)
			c.access.Look(c.t.Context())
		},
		"has no journal": func(c *cleaning) {
			c.record.fault = errors.New("the journal cannot be read")
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCleaning(t)
			c.watches = map[string]error{}
			c.add("issued", "own", approval)
			hinder(c)
			if got := c.after(3 * keep); len(got) > 0 {
				t.Errorf("deleted %q", got)
			}
		})
	}
}

// A missing permission to delete is reported, by its name and by what grants it, and keeps no
// request from being answered.
func TestMissingPermissionToDelete(t *testing.T) {
	c := newCleaning(t)
	c.access = access.NewWatch(&allBut{"delete certificatesigningrequests"},
		accessUser{c.Controller}, c.Logger)
	c.access.Look(t.Context())
	const want = "may not delete certificatesigningrequests: " +
		"grant it to the service account, as deploy/components/clean-up does"
	if err := c.CleanUpFault(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v", err)
	}
	if err := c.Permitted(); err != nil || c.access.Blocked() {
		t.Errorf("%v; blocked: %t", err, c.access.Blocked())
	}
	c.DeleteFinishedAfter = 0
	c.access.Look(t.Context())
	if err := errors.Join(c.CleanUpFault(), c.access.MayDelete()); err != nil {
		t.Errorf("not wanted: %v", err)
	}
}

// looked counts the checks of permissions.
type looked struct{ deletions int }

func (l *looked) Allowed(_ context.Context, p access.Permission) (bool, error) {
	if strings.HasPrefix(p.String(), "delete ") {
		l.deletions++
	}
	return true, nil
}

// A deletion that is forbidden has the permissions looked at, at once and not only in their turn.
func TestForbiddenDeletionIsRechecked(t *testing.T) {
	resource := schema.GroupResource{Resource: "certificatesigningrequests"}
	for want, fault := range map[int]error{1: errors.New("a fault"),
		2: apierrors.NewForbidden(resource, "issued", nil)} {
		synctest.Test(t, func(t *testing.T) {
			c := newCleaning(t)
			defer c.events.broadcaster.Shutdown()
			defer c.queue.ShutDown()
			looks := &looked{}
			c.access = access.NewWatch(looks, accessUser{c.Controller}, c.Logger)
			c.add("issued", "own", approval)
			c.server.fails = fault
			c.after(keep + quietTime)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			c.access.Run(ctx)
			if looks.deletions != want {
				t.Errorf("%v: %d looks; want %d", fault, looks.deletions, want)
			}
		})
	}
}

// A deletion that fails is reported until one succeeds, and is not tried again and again. A request
// that has changed, or is gone, is no failure.
func TestDeletionFails(t *testing.T) {
	resource := schema.GroupResource{Resource: "certificatesigningrequests"}
	forbidden := apierrors.NewForbidden(resource, "issued", errors.New("a webhook says no"))
	c := newCleaning(t)
	c.add("issued", "own", approval)
	c.server.fails = forbidden
	c.after(keep + quietTime)
	if err := c.CleanUpFault(); err == nil || !errors.Is(err, forbidden) {
		t.Errorf("%v", err)
	}
	c.server.fails = nil
	if got := c.after(keep - quietTime - time.Second); len(got) > 0 {
		t.Errorf("tried again at once: %q", got)
	}
	c.server.fails = apierrors.NewConflict(resource, "issued", nil)
	c.after(2 * keep)
	if err := c.CleanUpFault(); err != nil || c.Sinks[0].(*counting).deleted != 0 {
		t.Errorf("after a conflict: %v, %d deleted", err, c.Sinks[0].(*counting).deleted)
	}
}

// The refusal log is not read again and again, and what was not looked up there yet is not deleted.
func TestRefusalLogIsReadSeldom(t *testing.T) {
	c := newCleaning(t)
	for n := range 100 {
		uid := fmt.Sprint("denied ", n)
		c.add(uid, "", denial)
		if n%2 == 0 {
			c.record.refusals = append(c.record.refusals, uid)
		}
		c.after(time.Second)
	}
	if got := c.after(keep + 2*refusalsInterval); len(got) != 50 || c.record.searches > 5 {
		t.Errorf("%d were deleted, with %d readings of the log", len(got), c.record.searches)
	}
}

// What was answered first is deleted first, also if more becomes due meanwhile.
func TestOldestAnswerIsDeletedFirst(t *testing.T) {
	c := newCleaning(t)
	var order []string
	for _, uid := range []string{"c", "a", "b"} {
		c.add(uid, "own", approval)
		c.cleanUpOnce(t.Context())
		order = append(order, uid)
		c.clock = c.clock.Add(quietTime)
	}
	c.clock = c.clock.Add(keep - 2*quietTime) // c and a are due
	for range order {
		c.cleanUpOnce(t.Context())
		c.remove(c.server.deleted...)
		c.clock = c.clock.Add(quietTime)
	}
	if !slices.Equal(c.server.deleted, order) {
		t.Errorf("deleted in the order %v; want %v", c.server.deleted, order)
	}
}

// BenchmarkCleanUp chooses one of 10,000 requests to delete, as it does ten times a second.
func BenchmarkCleanUp(b *testing.B) {
	api, all := &csr.API{}, make([]request.Object, 10_000)
	for i := range all {
		uid := types.UID(strconv.Itoa(i))
		all[i] = api.Whole(&certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{Name: string(uid), UID: uid},
			Status: certificatesv1.CertificateSigningRequestStatus{Certificate: []byte("own"),
				Conditions: []certificatesv1.CertificateSigningRequestCondition{approval}},
		})
	}
	c := newCleaner(0, &onRecord{})
	c.see(all)
	started := time.Now()
	c.now = func() time.Time { return started.Add(time.Hour) }
	b.ReportAllocs()
	for b.Loop() {
		c.see(all)
		if r, err := c.next(all); r == nil || err != nil {
			b.Fatal(r, err)
		}
	}
}
