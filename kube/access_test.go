package kube

import (
	"context"
	"strings"
	"testing"

	"hsm-signer/kube/access"
	"hsm-signer/kube/lease"
)

// allBut permits everything but one permission.
type allBut struct{ missing string }

func (a *allBut) Allowed(_ context.Context, p access.Permission) (bool, error) {
	return p.String() != a.missing, nil
}

// Every permission that is taken away shows by its name; without one that is needed for it nothing
// is done, and when it is back all requests are served.
func TestEachMissingPermissionShows(t *testing.T) {
	c, add := withStore(t, &remembering{told: map[string]string{}}, func() bool { return true })
	add("waiting", "")
	c.Lease = &lease.Lease{Namespace: "n", Name: "l"}
	permitted := &allBut{}
	c.access = access.NewWatch(permitted, accessUser{c}, c.Logger)
	for _, permission := range (accessUser{c}).Use().Permissions() {
		permitted.missing = permission.String()
		c.access.Look(t.Context())
		spared := strings.Contains(permitted.missing, "events") ||
			strings.Contains(permitted.missing, "leases")
		want := "may not " + permitted.missing +
			": grant it to the service account, as deploy/base/rbac.yaml does"
		if err := c.Permitted(); err == nil || err.Error() != want || c.access.Blocked() == spared {
			t.Errorf("without %s: %v; blocked: %t", permitted.missing, err, c.access.Blocked())
		}
		if !spared {
			// which comes to no sync: that has no decider here
			c.serve(t.Context(), t.Context(), key{"waiting", "waiting"})
		}
		permitted.missing = ""
		c.access.Look(t.Context())
		if err := c.Permitted(); err != nil || c.access.Blocked() || !spared && c.queue.Len() != 1 {
			t.Errorf("with %s again: %v; %d requests are taken up", permission, err, c.queue.Len())
		}
		for c.queue.Len() > 0 {
			item, _ := c.queue.Get()
			c.queue.Done(item)
		}
	}
}
