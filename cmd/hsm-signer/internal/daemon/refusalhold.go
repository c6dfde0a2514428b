package daemon

import (
	"context"
	"fmt"
	"sync"
	"time"

	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// A refusalHold keeps requests for pod certificates open that the policy refuses, if the pod has had
// a certificate: kubelet takes a denial as final, and the pod's volume would never be updated again.
// One wrong edit of the policy must not do that to every pod. After a while the policy is meant.
// It is safe for concurrent use.
type refusalHold struct {
	kube.Decider
	hold time.Duration // how long a policy must be in force before such a request is denied
	now  func() time.Time

	mu    sync.Mutex
	hash  string    // of the policy that refused last
	since time.Time // when it first decided
}

func newRefusalHold(decider kube.Decider, hold time.Duration) *refusalHold {
	return &refusalHold{Decider: decider, hold: hold, now: time.Now}
}

// inForce notes the policy in force.
func (h *refusalHold) inForce(hash string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hash != hash {
		h.hash, h.since = hash, h.now()
	}
}

// until returns when a refusal by the policy is final for a pod that has had a certificate. It is
// false if it is now.
func (h *refusalHold) until(hash string) (time.Time, bool) {
	h.inForce(hash)
	h.mu.Lock()
	defer h.mu.Unlock()
	end := h.since.Add(h.hold)
	return end, h.now().Before(end)
}

// Decide is [kube.Decider]'s.
func (h *refusalHold) Decide(r *policy.Request, facts policy.Facts) policy.Verdict {
	verdict := h.Decider.Decide(r, facts)
	if r.PodCertificate == nil {
		return verdict
	}
	return h.keep(verdict, facts.PodStarted())
}

// keep returns [policy.Waiting] in place of a refusal that must not be final yet. Started says that
// a container of the pod was started.
func (h *refusalHold) keep(verdict policy.Verdict, started bool) policy.Verdict {
	refusal, refused := verdict.(*policy.Refusal)
	if !refused || !started || refusal.Final() {
		return verdict
	}
	if end, open := h.until(refusal.PolicyHash); open {
		return &policy.Waiting{Rule: refusal.Rule(), Missing: held(refusal, end)}
	}
	return verdict
}

// held says why a refused request stays open.
func held(refusal *policy.Refusal, end time.Time) string {
	return fmt.Sprintf("a policy that grants the request. The pod has had a certificate, so the "+
		"request is denied only if this policy is still in force at %s: %s",
		end.UTC().Format(time.RFC3339), refusal.Message())
}

// A clock reports whether the API server's clock is near enough.
type clock interface{ Fault() error }

// kubeIssuer is an issuer as the controller sees it.
type kubeIssuer struct {
	*issuer.Issuer
	hold  *refusalHold
	clock clock
}

// Prepare is [issuer.Issuer.Prepare]. A pod's certificate is not prepared while the API server would
// not take it, and a refusal that another policy or CA could change is held.
func (k kubeIssuer) Prepare(ctx context.Context, grant *policy.Grant) (kube.Prepared,
	policy.Verdict, error) {
	if grant.OfPod() {
		if err := k.clock.Fault(); err != nil {
			return nil, nil, err
		}
	}
	prepared, instead, err := k.Issuer.Prepare(ctx, grant)
	if prepared == nil {
		return nil, k.hold.keep(instead, grant.PodStarted()), err
	}
	return prepared, nil, nil
}
