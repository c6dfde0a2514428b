// Package refusal delays the refusals that would freeze the volumes of running pods.
//
// Duty: kubelet takes a denial of a pod certificate as final, also of a refresh: the pod's volume
// is never updated again. One wrong edit of the policy must not do that to every pod, so such a
// refusal is held until the policy has been in force for a while.
//
// Contract: a refusal is held only if the pod has had a certificate and another policy or CA could
// grant the request. While it is held the verdict is [policy.Waiting].
package refusal

import (
	"fmt"
	"sync"
	"time"

	"hsm-signer/kube"
	"hsm-signer/policy"
)

// A Hold decides as another decider does, and holds refusals. It is safe for concurrent use.
type Hold struct {
	kube.Decider
	delay time.Duration // how long a policy must be in force before it refuses running pods
	now   func() time.Time

	mu    sync.Mutex
	hash  string    // of the policy that refused last
	since time.Time // when it first decided
}

// New returns a hold whose policy is in force from now on.
func New(decider kube.Decider, policyHash string, delay time.Duration) *Hold {
	return &Hold{Decider: decider, delay: delay, now: time.Now, hash: policyHash,
		since: time.Now()}
}

// until returns when a refusal by the policy becomes final.
func (h *Hold) until(hash string) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hash != hash {
		h.hash, h.since = hash, h.now()
	}
	return h.since.Add(h.delay)
}

// Decide is [kube.Decider]'s.
func (h *Hold) Decide(r *policy.Request, facts policy.Facts) policy.Verdict {
	verdict := h.Decider.Decide(r, facts)
	if r.PodCertificate == nil {
		return verdict
	}
	return h.Keep(verdict, facts.PodStarted())
}

// Keep returns [policy.Waiting] instead of a refusal that must not be final yet. Started says that
// the pod has had a certificate.
func (h *Hold) Keep(verdict policy.Verdict, started bool) policy.Verdict {
	refusal, refused := verdict.(*policy.Refusal)
	if !refused || !started || refusal.Final() {
		return verdict
	}
	until := h.until(refusal.PolicyHash)
	if !h.now().Before(until) {
		return verdict
	}
	return &policy.Waiting{Rule: refusal.Rule(), Missing: missing(refusal, until),
		Held: &policy.HeldRefusal{Refusal: refusal, Until: until}}
}

// missing says why a refused request stays open.
func missing(refusal *policy.Refusal, until time.Time) string {
	return fmt.Sprintf("a policy that grants the request. The pod has had a certificate, so the "+
		"request is denied only if this policy is still in force at %s: %s",
		until.UTC().Format(time.RFC3339), refusal.Message())
}
