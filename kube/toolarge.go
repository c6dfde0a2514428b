package kube

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"hsm-signer/kube/request"
	"hsm-signer/policy"
)

// mostUnwritable bounds how many objects are remembered as ones that cannot be written.
const mostUnwritable = 10_000

// refusedForSize is the verdict on a granted request whose answer did not fit.
func refusedForSize(grant *policy.Grant) *policy.Refusal {
	refusal :=
		policy.TooLarge("cannot hold the answer: the API server says that it would be too large")
	refusal.PolicyHash, refusal.RequestSHA256 = grant.PolicyHash(), grant.RequestSHA256()
	return refusal
}

// answerTooLarge ends a granted request whose approval or certificate did not fit. A shorter answer
// may fit: that it is refused.
func (c *Controller) answerTooLarge(
	ctx context.Context, r request.Object, grant *policy.Grant,
) (Result, policy.Verdict, error) {
	r, err := fresh(ctx, r) // it may have been approved in this sync
	if err != nil {
		return resultNone, grant, err
	}
	if !r.State().Open() { // the next reconciliation records it
		return resultNone, grant, nil
	}
	result, verdict, err := c.refuse(ctx, r, refusedForSize(grant))
	if err == nil {
		c.orphan(ctx, r, "the request is too large to take it")
	}
	return result, verdict, err
}

// giveUp remembers a refusal that cannot be written to its object, and reports it once. The object
// is not tried again unless it changes.
func (c *Controller) giveUp(
	r request.Object, refusal *policy.Refusal,
) (Result, policy.Verdict, error) {
	if !c.unwritable.add(r.GetUID(), r.GetResourceVersion()) {
		return resultNone, refusal, nil
	}
	c.Logger.Warn("a request is too large to be written, and is left alone",
		"request", nameOf(r), "uid", r.GetUID(), "bytes", r.StoredSize())
	return ResultRefused, refusal, nil
}

// unwritable remembers objects that cannot be written, the latest mostUnwritable of them. Its zero
// value is empty. It is safe for concurrent use.
type unwritable struct {
	mu       sync.Mutex
	versions map[types.UID]string // the resourceVersion of each
	order    []types.UID          // the oldest first
}

// add remembers the object as it is now and reports whether it is new.
func (u *unwritable) add(uid types.UID, version string) (first bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, there := u.versions[uid]
	if u.versions == nil {
		u.versions = map[types.UID]string{}
	}
	u.versions[uid] = version
	if there {
		return false
	}
	if u.order = append(u.order, uid); len(u.order) > mostUnwritable {
		delete(u.versions, u.order[0])
		u.order = u.order[1:]
	}
	return true
}

// has reports whether the object is remembered as it is now.
func (u *unwritable) has(r request.Object) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	version, there := u.versions[r.GetUID()]
	return there && version == r.GetResourceVersion()
}
