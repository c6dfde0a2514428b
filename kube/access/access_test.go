package access

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// user is a controller that approves, and counts how often it is unblocked.
type user struct {
	namespaces []string
	unblocked  int
}

func (u *user) Use() Use {
	return Use{SignerNames: []string{"example.com/a"}, PodNamespaces: u.namespaces, Answers: true,
		Approves: true}
}

func (u *user) Unblocked() { u.unblocked++ }

// podsIn permits everything, and pods in these namespaces; "" is all.
type podsIn []string

func (n podsIn) Allowed(_ context.Context, p Permission) (bool, error) {
	return p.attributes.Resource != "pods" || slices.Contains(n, p.attributes.Namespace), nil
}

// A forbidden call has the permissions looked at, once however many there are.
func TestAForbiddenCallIsRechecked(t *testing.T) {
	w := NewWatch(nil, nil, hclog.NewNullLogger())
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "a", nil)
	for _, err := range []error{nil, context.Canceled, fmt.Errorf("read the pod: %w", forbidden),
		forbidden} {
		w.Recheck(err)
	}
	if n := len(w.recheck); n != 1 {
		t.Errorf("%d looks", n)
	}
}

// It is enough to read pods in the namespaces of the policy. Where they may be read in none, all is
// missing; where they may be read in some, requests are served.
func TestPodsAreReadInTheNamespacesOfThePolicy(t *testing.T) {
	u := &user{namespaces: []string{"a", "b"}}
	for _, test := range []struct {
		granted []string // namespaces; "": all
		lacking string
		blocked bool
	}{
		{[]string{""}, "", false},
		{[]string{"a", "b"}, "", false},
		{[]string{"a"}, "get pods in b", false},
		{nil, "get pods", true},
		{[]string{"other"}, "get pods", true},
	} {
		w := NewWatch(podsIn(test.granted), u, hclog.NewNullLogger())
		w.Look(t.Context())
		if w.Blocked() != test.blocked || (w.Permitted() != nil) != test.blocked {
			t.Errorf("granted in %q: blocked %t, %v", test.granted, w.Blocked(), w.Permitted())
		}
		for _, p := range u.Use().Permissions() {
			if p.String() != "get pods" {
				continue
			}
			lacking, err := p.Missing(t.Context(), podsIn(test.granted))
			if got := fmt.Sprint(lacking); err != nil || strings.Trim(got, "[]") != test.lacking {
				t.Errorf("granted in %q: lacking %s, %v; want %s", test.granted, got, err,
					test.lacking)
			}
		}
	}
}
