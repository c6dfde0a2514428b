package kube

import (
	"context"
	"errors"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"

	"hsm-signer/kube/csr"
	"hsm-signer/policy"
)

// reluctant is an issuer that lets what is granted wait.
type reluctant struct {
	remembering
	waiting policy.Waiting
}

func (r *reluctant) Prepare(
	context.Context, *policy.Grant,
) (Prepared, policy.Verdict, error) {
	return nil, &r.waiting, nil
}

// What is granted may wait for room in a budget, for a fact, or for the end of a held refusal. None
// is a fault, and the first and the last have a time at which to look again.
func TestGrantedWaits(t *testing.T) {
	for want, waiting := range map[Result]policy.Waiting{
		ResultOverBudget: {Budget: &policy.OverBudget{Until: time.Now()}},
		ResultHeld:       {Held: &policy.HeldRefusal{Until: time.Now()}},
		ResultWaiting:    {Missing: "the pod's IP"},
	} {
		c, _ := withStore(t, &reluctant{waiting: waiting}, func() bool { return true })
		r := (&csr.API{Kind: c.Kind.(csr.Kind)}).Whole(&certificatesv1.CertificateSigningRequest{})
		result, _, err := c.granted(t.Context(), r, nil)
		until := waitsUntil(&waiting)
		if result != want || !errors.Is(err, errLookAgain) ||
			until.IsZero() != (want == ResultWaiting) {
			t.Errorf("%q until %s, %v; want %q", result, until, err, want)
		}
	}
}
