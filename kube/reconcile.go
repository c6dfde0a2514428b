package kube

import (
	"context"
	"errors"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/policy"
)

// reconcileInterval is the time between two sweeps of the unfinished requests.
const reconcileInterval = 10 * time.Second

// firstReconcileInterval is the time between two tries until the first look: a request that took
// its certificate may be deleted at any moment, and then nobody can say whether it did.
const firstReconcileInterval = time.Second

// reconcileJournal finds out the outcome of what is unfinished in the journal: a request may have
// been deleted, or have taken its certificate just before this process was killed.
func (c *Controller) reconcileJournal(ctx context.Context) {
	err := wait.PollUntilContextCancel(ctx, firstReconcileInterval, true,
		func(ctx context.Context) (bool, error) { return c.reconcileJournalOnce(ctx), nil })
	if err == nil {
		again := func(ctx context.Context) { c.reconcileJournalOnce(ctx) }
		wait.UntilWithContext(ctx, again, reconcileInterval)
	}
}

// reconcileJournalOnce reports whether it could look. A controller that does not lead looks too:
// its journal is its own, and no other controller knows the outcome of what is in it.
func (c *Controller) reconcileJournalOnce(ctx context.Context) (looked bool) {
	unfinished := c.Issuer.Unfinished() // before the requests, so that none of them is later
	if !c.requests.Load().whole() {
		c.sinks.Report(Census{})
		return false
	}
	all := c.requests.Load().all()
	for _, submission := range unfinished {
		if !c.servesName(submission.SignerName) {
			continue // it may be there, and nobody watches it
		}
		if err := c.resolve(ctx, submission, all[types.UID(submission.UID)]); err != nil {
			c.Logger.Error("the journal could not record the outcome of a request",
				"request", submission.Name, "uid", submission.UID, "error", err)
		}
	}
	if c.election.Fence() != nil {
		c.sinks.Report(Census{})
		return true
	}
	c.countCertificates(all)
	return true
}

// resolve records the outcome of what was started; csr is nil if the store does not have it.
func (c *Controller) resolve(
	ctx context.Context, submission policy.Submission, csr *certificatesv1.CertificateSigningRequest,
) error {
	uid := submission.UID
	if csr == nil { // which the API server alone knows for sure
		var err error
		csr, err = c.requests.Load().fresh(ctx, &certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{Name: submission.Name, UID: types.UID(uid)},
		})
		switch {
		case errors.Is(err, errLookAgain):
			return c.Issuer.Unconfirmed(ctx, uid, "the request is gone")
		case err != nil:
			return err
		}
	}
	switch {
	case len(csr.Status.Certificate) > 0:
		made, err := c.Issuer.Made(uid, csr.Status.Certificate)
		switch {
		case err != nil:
			return err
		case made:
			return c.Issuer.Published(ctx, uid)
		}
		return c.Issuer.Unconfirmed(ctx, uid, "the request has a certificate that is not this one")
	case stateOf(csr) == done:
		return c.Issuer.Orphaned(ctx, uid, "the request was denied or has failed")
	}
	if c.election.Fence() == nil { // else the leader takes it up
		c.enqueue(csr)
	}
	return nil
}

// whole reports whether all requests were listed once.
func (r *requests) whole() bool {
	return !slices.ContainsFunc(r.synced, func(synced cache.InformerSynced) bool { return !synced() })
}

// all returns every request that is known, by UID.
func (r *requests) all() map[types.UID]*certificatesv1.CertificateSigningRequest {
	all := map[types.UID]*certificatesv1.CertificateSigningRequest{}
	for _, store := range r.stores {
		for _, object := range store.List() {
			if csr := requestIn(object); csr != nil {
				all[csr.UID] = csr
			}
		}
	}
	return all
}
