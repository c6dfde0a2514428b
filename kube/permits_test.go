package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"hsm-signer/kube/lease"
)

// Every permission that is taken away shows by its name; without one that is needed for it nothing is done, and
// when it is back all requests are taken up.
func TestEachMissingPermissionShows(t *testing.T) {
	c, add := withStore(t, &remembering{told: map[string]string{}}, func() bool { return true })
	add("waiting", "")
	c.Lease = &lease.Lease{Namespace: "n", Name: "l"}
	missing := ""
	c.permits.ask = func(_ context.Context, p Permission) (bool, error) { return p.String() != missing, nil }
	for _, permission := range Permissions(c.SignerNames, c.Mode, c.Lease, nil) {
		missing = permission.String()
		c.lookAtPermits(t.Context())
		spared := slices.Contains([]string{"events", "leases"}, permission.attributes.Resource)
		if err := c.Permitted(); err == nil || err.Error() != "may not "+missing+": grant it to the service account, as deploy/base/rbac.yaml does" || c.permits.idle() == spared {
			t.Errorf("without %s: %v; idle: %t", missing, err, c.permits.idle())
		}
		if !spared {
			c.serve(t.Context(), t.Context(), key{"waiting", "waiting"}) // which does not come to a turn: that has no decider here
		}
		missing = ""
		c.lookAtPermits(t.Context())
		if err := c.Permitted(); err != nil || c.permits.idle() || !spared && c.queue.Len() != 1 {
			t.Errorf("with %s again: %v; %d requests are taken up", permission, err, c.queue.Len())
		}
		for c.queue.Len() > 0 {
			item, _ := c.queue.Get()
			c.queue.Done(item)
		}
	}
}

// A forbidden call has the permissions looked at, once however many there are.
func TestForbiddenIsSuspected(t *testing.T) {
	p := newPermits(nil)
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "a", nil)
	for _, err := range []error{nil, context.Canceled, fmt.Errorf("read the pod: %w", forbidden), forbidden} {
		p.suspect(err)
	}
	if n := len(p.suspected); n != 1 {
		t.Errorf("%d looks", n)
	}
}

// It is enough to read pods in the namespaces of the policy. Where they may be read in none, all is
// missing; where they may be read in some, requests are served.
func TestPodsAreReadInTheNamespacesOfThePolicy(t *testing.T) {
	c, _ := withStore(t, &remembering{told: map[string]string{}}, func() bool { return true })
	c.PodNamespaces = func() []string { return []string{"a", "b"} }
	for _, test := range []struct {
		granted []string // namespaces; "": all
		lacking string
		idle    bool
	}{
		{[]string{""}, "", false},
		{[]string{"a", "b"}, "", false},
		{[]string{"a"}, "get pods in b", false},
		{nil, "get pods", true},
		{[]string{"other"}, "get pods", true},
	} {
		c.permits.ask = func(_ context.Context, p Permission) (bool, error) {
			return p.attributes.Resource != "pods" || slices.Contains(test.granted, p.attributes.Namespace), nil
		}
		c.lookAtPermits(t.Context())
		if c.permits.idle() != test.idle || (c.Permitted() != nil) != test.idle {
			t.Errorf("granted in %q: idle %t, %v", test.granted, c.permits.idle(), c.Permitted())
		}
		for _, p := range Permissions(c.SignerNames, c.Mode, nil, c.PodNamespaces()) {
			if p.String() != "get pods" {
				continue
			}
			lacking, err := p.missing(t.Context(), c.permits.ask)
			if got := fmt.Sprint(lacking); err != nil || strings.Trim(got, "[]") != test.lacking {
				t.Errorf("granted in %q: lacking %s, %v; want %s", test.granted, got, err, test.lacking)
			}
		}
	}
}
