package daemon

import (
	"context"

	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// kubeIssuer is an issuer as the controller sees it.
type kubeIssuer struct{ *issuer.Issuer }

// Prepare is [issuer.Issuer.Prepare].
func (k kubeIssuer) Prepare(ctx context.Context, grant *policy.Grant) (kube.Prepared,
	policy.Verdict, error) {
	prepared, instead, err := k.Issuer.Prepare(ctx, grant)
	if prepared == nil {
		return nil, instead, err
	}
	return prepared, nil, nil
}
