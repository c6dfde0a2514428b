package soak

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsm-signer/integration/bridge"
)

// A pair is two that stand for election, each with a journal of its own, as on two nodes.
type pair struct {
	signers [2]*signer
	daemons [2]*bridge.Daemon
}

func newPair(t *testing.T, s *stage) *pair {
	t.Helper()
	p := &pair{}
	for i := range p.signers {
		p.signers[i] = s.signer(t, "LEADER_ELECT=true", "LEASE_NAMESPACE=hsm-signer")
		p.daemons[i] = p.signers[i].startReady(t) // also while it stands by
	}
	return p
}

func leads(ctx context.Context, d *bridge.Daemon) bool {
	_, body, err := d.Readyz(ctx)
	return err == nil && strings.Contains(body, "leads true")
}

// leader waits until one of them leads, and returns which.
func (p *pair) leader(t *testing.T) int {
	t.Helper()
	leader := -1
	eventually(t, "one to lead", func(ctx context.Context) (bool, error) {
		for i, d := range p.daemons {
			if leads(ctx, d) {
				leader = i
			}
		}
		return leader >= 0, nil
	})
	return leader
}

// takeover waits until the other leads, and returns since when.
func (p *pair) takeover(t *testing.T, from int) time.Time {
	t.Helper()
	eventually(t, "the other to lead", func(ctx context.Context) (bool, error) { return leads(ctx, p.daemons[1-from]), nil })
	return time.Now()
}

// A reign is the time in which one led for certain, and the other must begin nothing.
type reign struct {
	of       int
	from, to time.Time
}

// Leaders are stopped and go on, are killed, and are asked to end.
func TestLeaders(t *testing.T) {
	pauses, kills, stops := of(1, 20), of(1, 5), of(1, 5)
	r := begin(t, 10, "the leader stopped with SIGSTOP for 30 s and continued, 20 times; kill -9, 5 times; SIGTERM, 5 times; while 5 requests a second come in",
		"second certificates for one UID 0; takeover ≤ 20 s after a kill, ≤ 3 s after SIGTERM")
	p := newPair(t, shared)
	c := shared.newCrowd(t)
	p.leader(t)
	stopAsking := c.keepAsking(t, 5)
	var reigns []reign
	var afterPause, afterKill, afterTerm []time.Duration
	for range pauses {
		took, reign := p.pause(t)
		afterPause, reigns = append(afterPause, took), append(reigns, reign)
	}
	for range kills {
		afterKill = append(afterKill, p.kill(t))
	}
	for range stops {
		afterTerm = append(afterTerm, p.terminate(t))
	}
	stopAsking()
	took := c.waitForAll(t)
	for _, d := range p.daemons {
		stop(t, d)
	}
	r.measured("%d requests, all issued %s after the last came", c.size(), seconds(took))
	r.measured("takeover: %s at most after SIGSTOP (%d), %s after kill -9 (%d), %s after SIGTERM (%d)",
		seconds(longest(afterPause)), pauses, seconds(longest(afterKill)), kills, seconds(longest(afterTerm)), stops)
	r.within(longest(afterKill), 20*time.Second)
	r.within(longest(afterTerm), 3*time.Second)
	p.account(t, r, c, reigns)
}

// pause stops the leader for 30 s, or in the short form until the other leads, and lets it go on.
func (p *pair) pause(t *testing.T) (time.Duration, reign) {
	t.Helper()
	leader := p.leader(t)
	began := time.Now()
	must(t, syscall.Kill(p.daemons[leader].PID(), syscall.SIGSTOP))
	since := p.takeover(t, leader)
	goesOn(t, of(time.Second, 30*time.Second-since.Sub(began)))
	must(t, syscall.Kill(p.daemons[leader].PID(), syscall.SIGCONT))
	eventually(t, "the one of before to know", func(ctx context.Context) (bool, error) {
		ready, _, err := p.daemons[leader].Readyz(ctx)
		return err == nil && ready && !leads(ctx, p.daemons[leader]), nil
	})
	return since.Sub(began), reign{1 - leader, since, time.Now()}
}

func (p *pair) kill(t *testing.T) time.Duration {
	t.Helper()
	leader := p.leader(t)
	began := time.Now()
	must(t, p.daemons[leader].Kill())
	took := p.takeover(t, leader).Sub(began)
	p.daemons[leader] = p.signers[leader].startReady(t)
	return took
}

func (p *pair) terminate(t *testing.T) time.Duration {
	t.Helper()
	leader := p.leader(t)
	began := time.Now()
	must(t, syscall.Kill(p.daemons[leader].PID(), syscall.SIGTERM))
	took := p.takeover(t, leader).Sub(began)
	if code, err := p.daemons[leader].Wait(); err != nil || code != 0 {
		t.Errorf("the leader ended with code %d, %v, after SIGTERM", code, err)
	}
	p.daemons[leader] = p.signers[leader].startReady(t)
	return took
}

// account counts in both journals: what one has begun while the other led, and which requests have a certificate in
// both. Such a one was signed by the leader of before and not published; nobody has it.
func (p *pair) account(t *testing.T, r *row, c *crowd, reigns []reign) {
	t.Helper()
	begun, both, unaccounted, unpublished := 0, 0, 0, 0
	accounts := [2]*account{p.signers[0].account(t), p.signers[1].account(t)}
	for i, a := range accounts {
		unaccounted += a.unaccounted
		for _, l := range p.signers[i].journal(t) {
			for _, reign := range reigns {
				if l.Kind == "intent" && reign.of != i && l.Time.After(reign.from) && l.Time.Before(reign.to) {
					begun++
				}
			}
		}
	}
	now, err := c.requests(t.Context())
	must(t, err)
	for uid, csr := range now {
		first, second := accounts[0].certificates[string(uid)], accounts[1].certificates[string(uid)]
		if len(first) > 0 && len(second) > 0 {
			both++
		}
		if !isOneOf(csr, append(first, second...)) {
			unpublished++
		}
	}
	if begun > 0 || unaccounted > 0 || unpublished > 0 || accounts[0].most() > 1 || accounts[1].most() > 1 {
		t.Errorf("%d were begun by one while the other led; %d signatures are in no journal; %d certificates in the cluster are in no journal; most certificates for one UID %d and %d",
			begun, unaccounted, unpublished, accounts[0].most(), accounts[1].most())
	}
	r.measured("begun by one while the other led %d", begun)
	r.measured("most certificates for one UID in a journal %d", max(accounts[0].most(), accounts[1].most()))
	r.measured("UIDs with a certificate in both journals, of which one is published, %d; orphans %d", both, accounts[0].orphans+accounts[1].orphans)
	r.measured("signatures in no journal %d", unaccounted)
}
