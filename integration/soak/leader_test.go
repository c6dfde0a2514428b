package soak

import (
	"context"
	"maps"
	"sync"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// A pair is two signers that stand for election, each with its own journal, as on two nodes.
type pair struct {
	signers [2]*signer
	daemons [2]*testenv.Daemon
	ran     [2][]*testenv.Daemon // all processes so far

	mu     sync.Mutex
	reigns []reign
}

// A reign starts when the API server stores a new holder of the lease.
type reign struct {
	holder string
	from   time.Time
}

func newPair(t *testing.T, s *fixture, env ...string) *pair {
	t.Helper()
	p := &pair{}
	for i := range p.signers {
		p.signers[i] = s.signer(t, append(env, "LEADER_ELECT=true",
			"LEASE_NAMESPACE="+leaseNamespace)...)
	}
	p.watchLease(t, s)
	p.start(t, 0)
	p.start(t, 1)
	return p
}

const leaseNamespace = "hsm-signer"

// start starts one of the two, which is ready even while it stands by.
func (p *pair) start(t *testing.T, i int) {
	t.Helper()
	p.daemons[i] = p.signers[i].startReady(t)
	p.ran[i] = append(p.ran[i], p.daemons[i])
}

// watchLease records each reign.
func (p *pair) watchLease(t *testing.T, s *fixture) {
	t.Helper()
	w, err := s.Cluster.Client().CoordinationV1().Leases(leaseNamespace).Watch(t.Context(),
		metav1.ListOptions{})
	must.OK(t, err)
	t.Cleanup(w.Stop)
	go func() {
		for event := range w.ResultChan() {
			lease, is := event.Object.(*coordinationv1.Lease)
			if !is || lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" ||
				lease.Spec.AcquireTime == nil {
				continue
			}
			p.mu.Lock()
			next := reign{*lease.Spec.HolderIdentity, lease.Spec.AcquireTime.Time}
			if len(p.reigns) == 0 || p.reigns[len(p.reigns)-1] != next {
				p.reigns = append(p.reigns, next)
			}
			p.mu.Unlock()
		}
	}()
}

// identities returns the identities with which a signer's processes have led.
func (p *pair) identities(i int) map[string]bool {
	all := map[string]bool{}
	for _, d := range p.ran[i] {
		for _, identity := range d.Identities() {
			all[identity] = true
		}
	}
	return all
}

// holder returns the last holder of the lease at that time.
func (p *pair) holder(at time.Time) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	holder := ""
	for _, r := range p.reigns {
		if !r.from.After(at) {
			holder = r.holder
		}
	}
	return holder
}

// leader waits until one of them leads, and returns which.
func (p *pair) leader(t *testing.T) int {
	t.Helper()
	leader := -1
	must.Eventually(t, "one to lead", func(ctx context.Context) (bool, error) {
		for i, d := range p.daemons {
			if d.Leads(ctx) {
				leader = i
			}
		}
		return leader >= 0, nil
	})
	return leader
}

// takeover waits until the other one leads, and returns the time.
func (p *pair) takeover(t *testing.T, from int) time.Time {
	t.Helper()
	must.Eventually(t, "the other to lead",
		func(ctx context.Context) (bool, error) { return p.daemons[1-from].Leads(ctx), nil })
	return time.Now()
}

// Leaders are stopped and continued, killed, and terminated.
func TestLeaders(t *testing.T) {
	r := begin(t, 10,
		"the leader stopped with SIGSTOP for 30 s and continued, 20 times; kill -9, 5 times; "+
			"SIGTERM, 5 times; while 5 requests a second come in",
		"second certificates for one UID 0; takeover ≤ 20 s after a kill, ≤ 3 s after SIGTERM")
	changeLeaders(t, r, newPair(t, shared), shared.newBatch(t), of(1, 20), of(1, 5), of(1, 5))
}

func changeLeaders(t *testing.T, r *row, p *pair, c *batch, pauses, kills, stops int) {
	t.Helper()
	w := watchCertificates(t, c)
	p.leader(t)
	stopAsking := c.keepAsking(t, 5)
	var afterPause, afterKill, afterTerm []time.Duration
	for range pauses {
		afterPause = append(afterPause, p.pause(t))
	}
	for range kills {
		afterKill = append(afterKill, p.kill(t))
	}
	for range stops {
		afterTerm = append(afterTerm, p.terminate(t))
	}
	stopAsking()
	took := c.waitForAll(t)
	w.end(t)
	for _, d := range p.daemons {
		must.OK(t, d.Shutdown())
	}
	r.measured("%d requests, all issued %s after the last came", c.size(), seconds(took))
	r.measured("takeover: %s at most after SIGSTOP (%d), %s after kill -9 (%d), %s after "+
		"SIGTERM (%d)",
		seconds(longest(afterPause)), pauses, seconds(longest(afterKill)), kills,
		seconds(longest(afterTerm)), stops)
	r.within(longest(afterKill), 20*time.Second)
	r.within(longest(afterTerm), 3*time.Second)
	if w.another > 0 {
		t.Errorf("%d requests were seen with one certificate, and then with another", w.another)
	}
	r.measured("second certificates for one UID %d", w.another)
	p.account(t, r, c)
}

// pause stops the leader for 30 s, or in the short form until the other one leads and has done this
// meanwhile, and continues it.
func (p *pair) pause(t *testing.T, meanwhile ...func()) time.Duration {
	t.Helper()
	leader := p.leader(t)
	began := time.Now()
	must.OK(t, syscall.Kill(p.daemons[leader].PID(), syscall.SIGSTOP))
	since := p.takeover(t, leader)
	for _, do := range meanwhile {
		do()
	}
	hold(t, 30*time.Second-since.Sub(began))
	must.OK(t, syscall.Kill(p.daemons[leader].PID(), syscall.SIGCONT))
	must.Eventually(t, "the former leader to stand by", func(ctx context.Context) (bool, error) {
		ready, _, err := p.daemons[leader].Readyz(ctx)
		return err == nil && ready && !p.daemons[leader].Leads(ctx), nil
	})
	return since.Sub(began)
}

func (p *pair) kill(t *testing.T) time.Duration {
	t.Helper()
	leader := p.leader(t)
	began := time.Now()
	must.OK(t, p.daemons[leader].Kill())
	took := p.takeover(t, leader).Sub(began)
	p.start(t, leader)
	return took
}

func (p *pair) terminate(t *testing.T) time.Duration {
	t.Helper()
	leader := p.leader(t)
	began := time.Now()
	must.OK(t, syscall.Kill(p.daemons[leader].PID(), syscall.SIGTERM))
	took := p.takeover(t, leader).Sub(began)
	if code, err := p.daemons[leader].Wait(); err != nil || code != 0 {
		t.Errorf("the leader ended with code %d, %v, after SIGTERM", code, err)
	}
	p.start(t, leader)
	return took
}

// account counts in both journals: the intents that one signer wrote while the other one led, and
// the requests that have a certificate in both. The former leader signed such a certificate and did
// not publish it, so no client has it.
func (p *pair) account(t *testing.T, r *row, batches ...*batch) {
	t.Helper()
	overlapping, both, unaccounted, unpublished := 0, 0, 0, 0
	accounts := [2]*account{p.signers[0].account(t), p.signers[1].account(t)}
	for i, a := range accounts {
		unaccounted += a.unaccounted
		own := p.identities(i)
		for _, l := range p.signers[i].journal(t) {
			if l.Kind == "intent" && !own[p.holder(l.Time)] {
				overlapping++
			}
		}
	}
	now := map[types.UID]answer{}
	for _, c := range batches {
		of, err := c.answers(t.Context())
		must.OK(t, err)
		maps.Copy(now, of)
	}
	for uid, answer := range now {
		first, second := accounts[0].certificates[string(uid)],
			accounts[1].certificates[string(uid)]
		if len(first) > 0 && len(second) > 0 {
			both++
		}
		if !answer.isOneOf(append(first, second...)) {
			unpublished++
		}
	}
	if overlapping > 0 || unaccounted > 0 || unpublished > 0 || accounts[0].most() > 1 ||
		accounts[1].most() > 1 {
		t.Errorf("%d intents of one while the other led; %d signatures are in no journal; "+
			"%d certificates in the cluster are in no journal; most certificates for one "+
			"UID %d and %d",
			overlapping, unaccounted, unpublished, accounts[0].most(), accounts[1].most())
	}
	r.measured("started by one while the other led %d", overlapping)
	r.measured("most certificates for one UID in a journal %d",
		max(accounts[0].most(), accounts[1].most()))
	r.measured("UIDs with a certificate in both journals, of which one is published, %d; "+
		"orphans %d",
		both, accounts[0].orphans+accounts[1].orphans)
	r.measured("signatures in no journal %d", unaccounted)
}

// The lease is patched: an unknown holder has it for 68 years.
func TestLeaseOfAnUnknownHolder(t *testing.T) {
	times := of(1, 5)
	r := begin(t, 20,
		"the lease patched to an unknown holder, 68 years and 2147483647 transitions, 5 times",
		"a replica leads ≤ 20 s after each")
	p := newPair(t, shared)
	c := shared.newBatch(t)
	var after []time.Duration
	for range times {
		p.leader(t)
		leases := shared.Cluster.Client().CoordinationV1().Leases(leaseNamespace)
		_, err := leases.Patch(t.Context(), "hsm-signer", types.MergePatchType, []byte(`{"spec":{
			"holderIdentity":"nobody","leaseDurationSeconds":2147483647,
			"leaseTransitions":2147483647
		}}`), metav1.PatchOptions{})
		must.OK(t, err)
		began := time.Now()
		must.Eventually(t, "one to lead again", func(ctx context.Context) (bool, error) {
			lease, err := leases.Get(ctx, "hsm-signer", metav1.GetOptions{})
			return err == nil && *lease.Spec.HolderIdentity != "nobody" &&
				(p.daemons[0].Leads(ctx) || p.daemons[1].Leads(ctx)), nil
		})
		after = append(after, time.Since(began))
		c.ask(t, 2)
		c.waitForAll(t)
	}
	for _, d := range p.daemons {
		must.OK(t, d.Shutdown())
	}
	r.measured("%d writes; a replica led %s after one at most; %d requests asked for afterwards, "+
		"all issued", times, seconds(longest(after)), c.size())
	r.within(longest(after), 20*time.Second)
}
