package daemon

import (
	"context"

	"hsm-signer/cmd/hsm-signer/internal/refusal"
	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// A clock reports whether the API server's clock is near enough.
type clock interface{ Fault() error }

// kubeIssuer is an issuer as the controller sees it.
type kubeIssuer struct {
	*issuer.Issuer
	hold  *refusal.Hold
	clock clock
}

// Prepare is [issuer.Issuer.Prepare]. A pod's certificate is not prepared while the API server
// would not take it, and a refusal that another policy or CA could change is held.
func (k kubeIssuer) Prepare(ctx context.Context, grant *policy.Grant) (kube.Prepared,
	policy.Verdict, error) {
	if grant.OfPod() {
		if err := k.clock.Fault(); err != nil {
			return nil, nil, err
		}
	}
	prepared, instead, err := k.Issuer.Prepare(ctx, grant)
	if prepared == nil {
		return nil, k.hold.Keep(instead, grant.PodStarted()), err
	}
	return prepared, nil, nil
}
