package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"hsm-signer/kube/apifault"
	"hsm-signer/kube/request"
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
	all := c.requests.Load().byUID()
	for _, submission := range unfinished {
		if !c.Kind.Serves(submission.SignerName) || !c.Kind.Named(submission.Name) {
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

// resolve records the outcome of what was started; r is nil if the store does not have it.
func (c *Controller) resolve(
	ctx context.Context, submission policy.Submission, r request.Object,
) error {
	uid := submission.UID
	if r == nil { // which the API server alone knows for sure
		var err error
		r, err = c.requests.Load().Get(ctx, submission.Name)
		lacks := request.NoAPI("")
		switch {
		case errors.As(err, &lacks):
			return nil // it is not ready for that reason, and looks again later
		case apifault.VersionGone(err):
			return fmt.Errorf("read the request again: %w", err)
		case apierrors.IsNotFound(err) || err == nil && r.GetUID() != types.UID(uid):
			return c.Issuer.Unconfirmed(ctx, uid, "the request is gone")
		case err != nil:
			return fmt.Errorf("read the request again: %w", err)
		}
	}
	switch {
	case len(r.Certificate()) > 0:
		made, err := c.Issuer.Made(uid, r.Certificate())
		switch {
		case err != nil:
			return err
		case made:
			return c.Issuer.Published(ctx, uid)
		}
		return c.Issuer.Unconfirmed(ctx, uid, "the request has a certificate that is not this one")
	case !r.State().Open():
		return c.Issuer.Orphaned(ctx, uid, "the request was denied or has failed")
	}
	if c.election.Fence() == nil { // else the leader takes it up
		c.enqueue(r)
	}
	return nil
}
