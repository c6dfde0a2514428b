package kube

import (
	"errors"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"hsm-signer/internal/must"
	"hsm-signer/kube/lease"
	"hsm-signer/kube/request"
	"hsm-signer/policy"
)

// A request that needs no approval of ours is answered as the watch has shown it, if no other
// controller and no approval of our own can have led to an answer that the watch has not shown yet.
// Another answer makes the write fail, and nothing is reported as issued.
func TestApprovedRequestIsReadAgain(t *testing.T) {
	conflict := apierrors.NewConflict(schema.GroupResource{}, "n", errors.New("changed"))
	for name, c := range map[string]struct {
		mode     Mode
		election *lease.Election
		refuse   error // of the write
		answered bool  // by someone else, which the watch has not shown
		direct   bool  // its kind has no approval
		reads    int
		want     Result
	}{
		"waits for approvals, alone":      {mode: Wait, want: ResultIssued},
		"approves":                        {mode: Approve, reads: 1, want: ResultIssued},
		"no approvals":                    {mode: Approve, direct: true, want: ResultIssued},
		"no approvals, and an election":   {Approve, &lease.Election{}, nil, false, true, 1, ""},
		"no approvals, and was overtaken": {Approve, nil, conflict, true, true, 0, ""},
		"waits, and has a new election":   {Wait, &lease.Election{}, nil, false, false, 1, ""},
		"approves, answered":              {Approve, nil, nil, true, false, 1, ""},
		"waits alone, and was overtaken":  {Wait, nil, conflict, true, false, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			controller, _ := withStore(t, &remembering{told: map[string]string{}}, nil)
			p, err := policy.Parse([]byte(trusting),
				policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour})
			must.OK(t, err)
			controller.Decider, controller.Mode, controller.election = p, c.mode, c.election
			object := granted(t, 1)
			object.Status.Conditions = append(object.Status.Conditions,
				condition(certificatesv1.CertificateApproved, corev1.ConditionTrue))
			server := &storing{object: object.DeepCopy(),
				refuse: func(string) error { return c.refuse }}
			if c.answered {
				server.object.Status.Certificate = []byte("certificate")
			}
			api := apiOf(controller)
			api.Client = server
			var r request.Object = api.Whole(object)
			if c.direct {
				r = withoutApproval{r}
			}
			result, _, err := controller.sync(t.Context(), r)
			if result != c.want || server.reads != c.reads || isFault(err) {
				t.Errorf("%q after %d reads, %v; want %q after %d", result, server.reads, err,
					c.want, c.reads)
			}
		})
	}
}

// withoutApproval is a request of a kind without approval.
type withoutApproval struct{ request.Object }

func (withoutApproval) NeedsApproval() bool { return false }
