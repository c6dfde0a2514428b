package kube

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"hsm-signer/kube/apifault"
	"hsm-signer/kube/request"
	"hsm-signer/policy"
)

// errLookAgain ends a sync in which nothing was wrong and nothing could be done yet.
var errLookAgain = errors.New("look again")

// errPaced ends a sync whose request comes back when it may be answered.
var errPaced = errors.New("held back so that slow watchers keep up")

// sync takes one request as far as it goes, and returns how far that was, with the last verdict.
// The object is the store's and is not changed.
func (c *Controller) sync(
	ctx context.Context, r request.Object,
) (Result, policy.Verdict, error) {
	if c.unwritable.has(r) {
		return resultNone, nil, nil
	}
	release, err := c.takeLarge(r)
	if err != nil {
		return resultNone, nil, err
	}
	defer release()
	if c.readsAgain(r) {
		if r, err = fresh(ctx, r); err != nil {
			return resultNone, nil, err
		}
	}
	if state := r.State(); !state.Open() || !c.serves(r) ||
		state == request.Pending && c.Mode == Wait {
		// nothing to do, or someone else's approval will come as an update
		return resultNone, nil, nil
	}
	verdict, pods, err := decide(ctx, &c.pods, c.Decider, r)
	if err != nil {
		return resultNone, nil, err
	}
	if !c.pacer.Watched(keyOf(r), pods.initializing, pods.took) {
		return resultNone, verdict, errPaced
	}
	switch v := verdict.(type) {
	case *policy.Grant:
		return c.granted(ctx, r, v)
	case *policy.Refusal:
		if notOurs(r, v) {
			return resultNone, v, nil
		}
		return c.refuse(ctx, r, v)
	case *policy.Waiting:
		return resultOf(v), v, errLookAgain
	}
	return resultNone, verdict, fmt.Errorf("the policy gave no verdict (%T)", verdict)
}

// readsAgain reports whether a request must be read from the API server before it is decided on.
// The cache may have only a part of it. Or it may be answered already, and the cache does not know
// yet: by this controller, which has just approved it, or by the leader before. Otherwise a
// controller knows its answers from the journal, and signs none twice. If anybody else has changed
// the request, writing the certificate fails.
func (c *Controller) readsAgain(r request.Object) bool {
	return r.Truncated() || r.State() == request.Approved &&
		(r.NeedsApproval() && c.Mode == Approve || !c.election.Settled())
}

// takeLarge lets one sync at a time read a truncated request whole. While another one does, it
// returns errLookAgain and does not wait. The caller must call release.
func (c *Controller) takeLarge(r request.Object) (release func(), err error) {
	if !r.Truncated() {
		return func() {}, nil
	}
	select {
	case c.large <- struct{}{}:
		return func() { <-c.large }, nil
	default:
		return nil, errLookAgain
	}
}

// shadow decides on a request, and returns what would have come of it.
func (c *Controller) shadow(
	ctx context.Context, r request.Object,
) (Result, policy.Verdict, error) {
	release, err := c.takeLarge(r)
	if err != nil {
		return resultNone, nil, err
	}
	defer release()
	if r.Truncated() { // its size is part of the verdict
		if r, err = fresh(ctx, r); err != nil {
			return resultNone, nil, err
		}
	}
	verdict, _, err := decide(ctx, &c.pods, c.Decider, r)
	if err != nil {
		return resultNone, nil, err
	}
	switch v := verdict.(type) {
	case *policy.Grant:
		return ResultWouldIssue, v, nil
	case *policy.Refusal:
		if notOurs(r, v) {
			return resultNone, v, nil
		}
		return ResultWouldDeny, v, nil
	}
	if r.State().Open() {
		err = errLookAgain
	}
	return ResultWaiting, verdict, err
}

// decide gathers the facts and asks for the verdict. It also returns what it read of pods.
func decide(
	ctx context.Context, reader *podReader, decider Decider, r request.Object,
) (policy.Verdict, podsRead, error) {
	asked := policy.NewRequest(r.Submission())
	var pods podsRead
	if query, ok := decider.PodQuery(asked); ok {
		var err error
		if pods, err = reader.find(ctx, query); err != nil {
			return nil, podsRead{}, err
		}
	}
	return decider.Decide(asked, pods.facts), pods, nil
}

// granted prepares the certificate, and then approves, issues and publishes. Nothing is approved
// that cannot be signed now.
func (c *Controller) granted(
	ctx context.Context, r request.Object, grant *policy.Grant,
) (Result, policy.Verdict, error) {
	prepared, instead, err := c.Issuer.Prepare(ctx, grant)
	if err != nil {
		return resultNone, grant, fmt.Errorf("cannot sign now: %w", err)
	}
	switch v := instead.(type) {
	case *policy.Refusal:
		return c.refuseGranted(ctx, r, v)
	case *policy.Waiting:
		return resultOf(v), v, errLookAgain
	}
	err = c.answer(ctx, r, grant, prepared)
	switch {
	case apifault.TooLarge(err):
		return c.answerTooLarge(ctx, r, grant)
	case err != nil:
		return resultNone, grant, err
	}
	return ResultIssued, grant, nil
}

// answer approves the request if nobody has, issues and publishes, in the order of its kind.
func (c *Controller) answer(
	ctx context.Context, r request.Object, grant *policy.Grant, prepared Prepared,
) (err error) {
	if r.State() == request.Pending && r.PublishFirst() {
		if len(r.Certificate()) == 0 {
			if r, err = c.issue(ctx, r, grant, prepared); err != nil {
				return err
			}
		}
		_, err = c.approve(ctx, r, grant)
		return err
	}
	if r.State() == request.Pending {
		if r, err = c.approve(ctx, r, grant); err != nil {
			return err
		}
	}
	_, err = c.issue(ctx, r, grant, prepared)
	return err
}

func (c *Controller) approve(
	ctx context.Context, r request.Object, grant *policy.Grant,
) (request.Object, error) {
	ctx, cancel, err := c.election.Acting(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	updated, err := r.Approve(ctx, "PolicyGranted",
		fmt.Sprintf("granted by rule %s of policy %.12s", grant.Rule(), grant.PolicyHash()))
	return updated, written("approve", err)
}

// issue has the prepared certificate signed and writes it to the object that was decided on, and to
// no other.
func (c *Controller) issue(
	ctx context.Context, r request.Object, grant *policy.Grant, prepared Prepared,
) (request.Object, error) {
	// What is signed and written is so before another controller may lead.
	ctx, cancel, err := c.election.Acting(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	chain, err := prepared.Issue(ctx)
	switch {
	case errors.Is(err, policy.ErrGrantStale):
		return nil, errLookAgain // the policy or the CA was replaced in mid-sync
	case err != nil:
		return nil, fmt.Errorf("issue: %w", err)
	}
	if err := c.election.Fence(); err != nil {
		return nil, err
	}
	updated, err := r.Publish(ctx, chain)
	if errors.Is(err, request.ErrNotBefore) { // so another one is made
		c.orphan(ctx, r, "the API server refuses it for its notBefore")
	}
	if err != nil {
		return nil, written("publish the certificate", err)
	}
	if err := c.Issuer.Published(ctx, grant.RequestUID()); err != nil {
		c.Logger.Error("the certificate is published, but the journal could not record that",
			"request", nameOf(r), "uid", r.GetUID(), "error", err)
	}
	return updated, nil
}

// notOurs reports whether the request is another signer's: before 1.18 all share the unset name.
func notOurs(r request.Object, refusal *policy.Refusal) bool {
	return r.Signer() == "" && refusal.UnknownRequester()
}

// refuseGranted refuses a request that the policy grants and that can never be issued. If the
// journal has an earlier certificate for it, the condition comes first and then the line that
// nobody will take that certificate.
func (c *Controller) refuseGranted(
	ctx context.Context, r request.Object, refusal *policy.Refusal,
) (Result, policy.Verdict, error) {
	result, verdict, err := c.refuse(ctx, r, refusal)
	if err == nil && refusal.Code() == policy.FormerCertificate {
		c.orphan(ctx, r, refusal.Reasons[0].Message)
	}
	return result, verdict, err
}

// orphan records that a request will not take its certificate. If that fails, the next
// reconciliation of a refused request records it.
func (c *Controller) orphan(ctx context.Context, r request.Object, why string) {
	if err := c.Issuer.Orphaned(ctx, string(r.GetUID()), why); err != nil {
		c.Logger.Error("the journal could not record that the certificate of a request is given "+
			"up",
			"request", nameOf(r), "uid", r.GetUID(), "error", err)
	}
}

// finish ends a request without a certificate, which is final.
func (c *Controller) finish(ctx context.Context, r request.Object, reason, message string) error {
	ctx, cancel, err := c.election.Acting(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	return written("write the refusal", r.Refuse(ctx, reason, message))
}

// refuse denies a pending request, and fails one that someone else has approved: an approval is no
// way round the policy.
func (c *Controller) refuse(
	ctx context.Context, r request.Object, refusal *policy.Refusal,
) (Result, policy.Verdict, error) {
	if !request.HasRoom(r.StoredSize(), request.RoomForRefusal) {
		return c.giveUp(r, refusal)
	}
	err := c.finish(ctx, r, string(refusal.Code()), refusal.Message())
	switch {
	case apifault.TooLarge(err):
		return c.giveUp(r, refusal)
	case err != nil:
		return resultNone, refusal, err
	}
	return ResultRefused, refusal, nil
}

// written turns the error of a guarded write into that of a sync: a conflict and a
// request that is gone mean that the object has changed, so look again.
func written(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsConflict(err) || apierrors.IsNotFound(err):
		return errLookAgain
	}
	return fmt.Errorf("%s: %w", what, err)
}
