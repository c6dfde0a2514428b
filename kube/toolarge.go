package kube

import (
	"context"
	"fmt"
	"sync"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/types"

	"hsm-signer/policy"
)

// A requester may create an object that etcd stores and that nothing can be added to any more. No
// answer can be written to it, so it is refused before anything is approved or signed.
const (
	// mostStored is how many bytes etcd takes in one request by default (--max-request-bytes).
	mostStored = 1536 << 10
	// roomForAnswer is kept for an approval, a certificate with its chain and a refusal.
	roomForAnswer = 128 << 10
	// roomForRefusal is kept for one condition and the API server's note of who wrote it.
	roomForRefusal = 8 << 10
	// mostIgnored bounds how many objects are remembered as ones that cannot be written.
	mostIgnored = 10_000
)

// storedSize returns about how many bytes etcd takes in a request that updates the object: the
// object, and its key three times.
func storedSize(csr *certificatesv1.CertificateSigningRequest) int {
	const keyPrefix, overhead = len("/registry/certificatesigningrequests/"), 256
	return csr.Size() + 3*(keyPrefix+len(csr.Name)) + overhead
}

// hasRoom reports whether so many bytes more can be written to the object.
func hasRoom(csr *certificatesv1.CertificateSigningRequest, more int) bool {
	return storedSize(csr)+more <= mostStored
}

// sizeFault returns why no answer can be written to the object, or "" if it has room for one.
func sizeFault(csr *certificatesv1.CertificateSigningRequest) string {
	if hasRoom(csr, roomForAnswer) {
		return ""
	}
	return fmt.Sprintf("has about %d bytes; etcd stores %d, and a certificate needs up to %d of them",
		storedSize(csr), mostStored, roomForAnswer)
}

// refusedForSize is the verdict on a granted request whose answer did not fit.
func refusedForSize(grant *policy.Grant) *policy.Refusal {
	refusal := policy.TooLarge("cannot hold the answer: the API server says that it would be too large")
	refusal.PolicyHash, refusal.RequestSHA256 = grant.PolicyHash(), grant.RequestSHA256()
	return refusal
}

// answerTooLarge ends a granted request whose approval or certificate did not fit. A shorter answer
// may fit: that it is refused.
func (c *Controller) answerTooLarge(
	ctx context.Context, csr *certificatesv1.CertificateSigningRequest, grant *policy.Grant,
) (Result, policy.Verdict, error) {
	csr, err := c.requests.Load().fresh(ctx, csr) // it may have been approved in this sync
	if err != nil {
		return resultNone, grant, err
	}
	was := stateOf(csr)
	if was == done { // the next reconciliation records it
		return resultNone, grant, nil
	}
	result, verdict, err := c.refuse(ctx, csr, was, refusedForSize(grant))
	if err == nil {
		c.orphan(ctx, csr, "the request is too large to take it")
	}
	return result, verdict, err
}

// ignore remembers a refusal that cannot be written to its object, and reports it once. The object
// is not tried again unless it changes.
func (c *Controller) ignore(
	csr *certificatesv1.CertificateSigningRequest, refusal *policy.Refusal,
) (Result, policy.Verdict, error) {
	if !c.ignored.add(csr.UID, csr.ResourceVersion) {
		return resultNone, refusal, nil
	}
	c.Logger.Warn("a request is too large to be written, and is left alone",
		"request", csr.Name, "uid", csr.UID, "bytes", storedSize(csr))
	return ResultRefused, refusal, nil
}

// ignored remembers objects that cannot be written, the latest mostIgnored of them. Its zero value
// is empty. It is safe for concurrent use.
type ignored struct {
	mu       sync.Mutex
	versions map[types.UID]string // the resourceVersion of each
	order    []types.UID          // the oldest first
}

// add remembers the object as it is now and reports whether it is new.
func (i *ignored) add(uid types.UID, version string) (first bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, there := i.versions[uid]
	if i.versions == nil {
		i.versions = map[types.UID]string{}
	}
	i.versions[uid] = version
	if there {
		return false
	}
	if i.order = append(i.order, uid); len(i.order) > mostIgnored {
		delete(i.versions, i.order[0])
		i.order = i.order[1:]
	}
	return true
}

// has reports whether the object is remembered as it is now.
func (i *ignored) has(csr *certificatesv1.CertificateSigningRequest) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	version, there := i.versions[csr.UID]
	return there && version == csr.ResourceVersion
}
