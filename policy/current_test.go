package policy_test

import (
	"errors"
	"testing"

	"hsm-signer/policy"
)

func TestReplacedPolicyVoidsItsGrants(t *testing.T) {
	current := policy.NewCurrent(builtIn(t, "calico"))
	request, facts := newAsker("calico-system", "calico-node", "typha-client").request(t)
	before := requireGrant(t, current.Decide(request, facts))
	current.Replace(builtIn(t, "calico"))
	if err := before.Redeem(); !errors.Is(err, policy.ErrGrantStale) {
		t.Errorf("a grant of the policy before: %v", err)
	}
	if err := requireGrant(t, current.Decide(request, facts)).Redeem(); err != nil {
		t.Errorf("a grant of the policy in force: %v", err)
	}
}
