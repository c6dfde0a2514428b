package bridge_test

import (
	"context"
	"strings"
	"syscall"
	"testing"

	"hsm-signer/integration/bridge"
)

// electing is the environment of one of many.
var electing = []string{"LEADER_ELECT=true", "LEASE_NAMESPACE=hsm-signer"}

// one starts one of many, which ends with the test whatever becomes of it.
func one(t *testing.T) *bridge.Daemon {
	t.Helper()
	d, err := shared.Run(t.Context(), ca, electing...)
	must(t, err)
	must(t, d.WaitReady(t.Context())) // also while it stands by
	t.Cleanup(func() {
		if d.Running() {
			_ = d.Kill()
		}
	})
	return d
}

func waitLeads(t *testing.T, d *bridge.Daemon) {
	t.Helper()
	eventually(t, "it to lead", func(ctx context.Context) (bool, error) {
		_, body, err := d.Readyz(ctx)
		return err == nil && strings.Contains(body, "leads true"), nil
	})
}

// ask has a new pod ask, and requires that it gets its certificate.
func ask(t *testing.T) {
	t.Helper()
	p := newPod(t, components()[0], nextIP())
	p.requireCertificate(t, p.asking(t, components()[0]))
}

func issuedBy(d *bridge.Daemon) int { return strings.Count(d.Log(), `"@message":"issued"`) }

// One leads, the other stands by, ready; when the first stops, it has given the lease up.
func TestOneOfManyLeads(t *testing.T) {
	first := one(t)
	waitLeads(t, first)
	second := one(t)
	ask(t)
	eventually(t, "the leader's log to say that it issued", func(context.Context) (bool, error) { return issuedBy(first) > 0, nil })
	if n := issuedBy(second); n != 0 {
		t.Errorf("the other issued %d certificates too", n)
	}
	if code, err := first.Stop(); err != nil || code != 0 {
		t.Errorf("the leader ended with code %d, %v; its log:\n%s", code, err, first.Log())
	}
	waitLeads(t, second)
	ask(t)
}

// A leader that is killed is followed by the other.
func TestKilledLeaderIsFollowed(t *testing.T) {
	first := one(t)
	waitLeads(t, first)
	second := one(t)
	must(t, first.Kill())
	waitLeads(t, second)
	ask(t)
}

// A leader that was stopped for longer than its lease acts no more when it goes on: it knows by its
// clocks, before anybody tells it.
func TestStoppedLeaderActsNoMore(t *testing.T) {
	first := one(t)
	waitLeads(t, first)
	second := one(t)
	must(t, syscall.Kill(first.PID(), syscall.SIGSTOP))
	waitLeads(t, second)
	before := issuedBy(first)
	p := newPod(t, components()[0], nextIP())
	csr, err := p.asking(t, components()[0]).Submit(t.Context(), p.client)
	must(t, err)
	must(t, syscall.Kill(first.PID(), syscall.SIGCONT))
	ask(t)
	eventually(t, "the first request's certificate", func(context.Context) (bool, error) {
		return len(get(t, csr.Name).Status.Certificate) > 0, nil
	})
	if n := issuedBy(first); n != before {
		t.Errorf("the leader of before issued %d certificates after it went on; its log:\n%s", n-before, first.Log())
	}
}
