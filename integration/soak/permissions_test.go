package soak

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"hsm-signer/integration/faultproxy"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// Each permission is removed in turn while requests arrive.
func TestPermissionsAreTakenAway(t *testing.T) {
	r := begin(t, 19, "each permission that is needed taken away in turn, and given back",
		"not ready, says which, no hot loop")
	proxy, through := shared.proxied(t)
	s := shared.signer(t, through, "LEADER_ELECT=true", "LEASE_NAMESPACE=hsm-signer")
	d := s.startReady(t)
	c := shared.newBatch(t)
	// Otherwise hsm-signer's account could read requests without its own roles.
	must.OK(t, shared.Cluster.AllowRequests(t.Context(), node().Namespace))
	t.Cleanup(func() { must.OK(t, shared.Cluster.AllowRequests(context.Background(), "")) })
	all, err := shared.Cluster.Permissions(t.Context())
	must.OK(t, err)
	all = slices.DeleteFunc(all, func(p testenv.Permission) bool { return p.Optional })
	busiest, busiestWithout := 0.0, ""
	all = all[:of(min(3, len(all)), len(all))]
	for _, p := range all {
		must.OK(t, p.Revoke(t.Context()))
		t.Cleanup(func() { must.OK(t, p.Restore(context.Background())) })
		if err := d.WaitNotReady(t.Context(), p.Verb+" "+p.Resource); err != nil {
			t.Errorf("without %s: %v", p, err)
		}
		c.ask(t, 2)
		if rate := callRate(t, proxy, of(time.Second, 10*time.Second)); rate > busiest {
			busiest, busiestWithout = rate, p.String()
		}
		must.OK(t, p.Restore(t.Context()))
		must.OK(t, d.WaitReady(t.Context()))
	}
	c.waitForAll(t)
	requireNoneRefused(t, c)
	must.OK(t, d.Shutdown())
	s.account(t).requireWhole(t, c)
	const hot = 50 // calls a second; retries of two requests make a few
	if busiest > hot {
		t.Errorf("%.0f calls a second without %s", busiest, busiestWithout)
	}
	r.measured("%d permissions, each named by /readyz while it was missing; ready again when "+
		"it was back", len(all))
	r.measured("at most %.1f API calls a second meanwhile, with two open requests (without %q)",
		busiest, busiestWithout)
	r.measured("%d requests, all issued afterwards, none refused", c.size())
}

// callRate returns how many calls a second pass the proxy, measured over the interval.
func callRate(t *testing.T, p *faultproxy.Proxy, interval time.Duration) float64 {
	t.Helper()
	before, began := p.Calls(), time.Now()
	select {
	case <-time.After(interval):
	case <-t.Context().Done():
	}
	return float64(p.Calls()-before) / time.Since(began).Seconds()
}

// requireNoneRefused requires that no fault led to a refusal.
func requireNoneRefused(t *testing.T, c *batch) {
	t.Helper()
	refused, err := c.refused(t.Context())
	must.OK(t, err)
	if len(refused) > 0 {
		t.Error(fmt.Errorf("refused: %s", strings.Join(refused, ", ")))
	}
}
