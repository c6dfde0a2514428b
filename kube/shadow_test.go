package kube

import (
	"errors"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"

	"hsm-signer/kube/csr"
	"hsm-signer/policy"
)

// undecided keeps every request waiting.
type undecided struct{}

func (undecided) PodQuery(*policy.Request) (policy.PodQuery, bool) {
	return policy.PodQuery{}, false
}

func (undecided) Decide(*policy.Request, policy.Facts) policy.Verdict { return &policy.Waiting{} }

// A shadow looks again at every open request that waits for a fact: also at one that is approved,
// as those of a kind without approval always are.
func TestShadowLooksAgain(t *testing.T) {
	c, _ := withStore(t, &remembering{}, func() bool { return true })
	c.Decider = undecided{}
	for name, conditions := range map[string][]certificatesv1.CertificateSigningRequestCondition{
		"pending":  nil,
		"approved": {{Type: certificatesv1.CertificateApproved}},
	} {
		r := (&csr.API{Kind: c.Kind.(csr.Kind)}).Whole(&certificatesv1.CertificateSigningRequest{
			Spec:   certificatesv1.CertificateSigningRequestSpec{SignerName: "example.com/a"},
			Status: certificatesv1.CertificateSigningRequestStatus{Conditions: conditions},
		})
		result, _, err := c.shadow(t.Context(), r)
		if result != ResultWaiting || !errors.Is(err, errLookAgain) {
			t.Errorf("%s: %q, %v; want to look again", name, result, err)
		}
	}
}
