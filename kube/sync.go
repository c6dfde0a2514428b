package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/kube/apifault"
	"hsm-signer/kube/csr"
	"hsm-signer/policy"
)

// state is where a request stands.
type state int

const (
	pending  state = iota // nobody has decided
	approved              // approved, and no certificate yet
	done                  // denied, failed, or with its certificate
)

// stateOf reads the state from the object. The API server lets a certificate be
// set on a request that is denied or failed, so both come first. A request
// without a signer name is done only when it is approved too (see
// [Controller.publishFirst]).
func stateOf(csr *certificatesv1.CertificateSigningRequest) state {
	s := pending
	for _, condition := range csr.Status.Conditions {
		if condition.Status != corev1.ConditionTrue && condition.Status != "" {
			continue
		}
		switch condition.Type {
		case certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
			return done
		case certificatesv1.CertificateApproved:
			s = approved
		}
	}
	if len(csr.Status.Certificate) > 0 && (s == approved || csr.Spec.SignerName != "") {
		return done
	}
	return s
}

// errLookAgain ends a sync in which nothing was wrong and nothing could be done
// yet.
var errLookAgain = errors.New("look again")

// errPaced ends a sync whose request comes back when it may be answered.
var errPaced = errors.New("held back so that slow watchers keep up")

// serves reports whether the request asks one of our signers.
func (c *Controller) serves(csr *certificatesv1.CertificateSigningRequest) bool {
	return c.servesName(csr.Spec.SignerName)
}

func (c *Controller) servesName(signer string) bool {
	if signer == "" {
		return c.AcceptUnset
	}
	return slices.Contains(c.SignerNames, signer)
}

// sync takes one request as far as it goes, and returns how far that was, with the last verdict.
// The object is the store's and is not changed.
func (c *Controller) sync(ctx context.Context, request *stored) (Result, policy.Verdict, error) {
	csr := request.CertificateSigningRequest
	if c.ignored.has(csr) {
		return resultNone, nil, nil
	}
	release, err := c.takeLarge(request)
	if err != nil {
		return resultNone, nil, err
	}
	defer release()
	was := stateOf(csr)
	if was == approved || request.truncated {
		// What the cache shows may be long done, have been made again, or not be all.
		if csr, err = c.requests.Load().fresh(ctx, csr); err != nil {
			return resultNone, nil, err
		}
		was = stateOf(csr)
	}
	if was == done || !c.serves(csr) || was == pending && c.Mode == Wait {
		return resultNone, nil, nil // nothing to do, or someone else's approval will come as an update
	}
	verdict, pods, err := decide(ctx, c.Client, c.Decider, csr)
	if err != nil {
		return resultNone, nil, err
	}
	if !c.pacer.Watched(key{csr.Name, csr.UID}, pods.initializing, pods.took) {
		return resultNone, verdict, errPaced
	}
	switch v := verdict.(type) {
	case *policy.Grant:
		return c.granted(ctx, csr, was, v)
	case *policy.Refusal:
		if notOurs(csr, v) {
			return resultNone, v, nil
		}
		return c.refuse(ctx, csr, was, v)
	case *policy.Waiting:
		return ResultWaiting, v, errLookAgain
	}
	return resultNone, verdict, fmt.Errorf("the policy gave no verdict (%T)", verdict)
}

// takeLarge waits for no other sync: it returns errLookAgain while one reads a large request whole
// and this one must do so too. Release ends the caller's own.
func (c *Controller) takeLarge(request *stored) (release func(), err error) {
	if !request.truncated {
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
func (c *Controller) shadow(ctx context.Context, request *stored) (Result, policy.Verdict, error) {
	csr := request.CertificateSigningRequest
	release, err := c.takeLarge(request)
	if err != nil {
		return resultNone, nil, err
	}
	defer release()
	if request.truncated { // its size is part of the verdict
		if csr, err = c.requests.Load().fresh(ctx, csr); err != nil {
			return resultNone, nil, err
		}
	}
	verdict, _, err := decide(ctx, c.Client, c.Decider, csr)
	if err != nil {
		return resultNone, nil, err
	}
	switch v := verdict.(type) {
	case *policy.Grant:
		return ResultWouldIssue, v, nil
	case *policy.Refusal:
		if notOurs(csr, v) {
			return resultNone, v, nil
		}
		return ResultWouldDeny, v, nil
	}
	if stateOf(csr) == pending {
		err = errLookAgain
	}
	return ResultWaiting, verdict, err
}

// decide gathers the facts and asks for the verdict. It also returns what it read of pods.
func decide(ctx context.Context, client kubernetes.Interface, decider Decider,
	csr *certificatesv1.CertificateSigningRequest) (policy.Verdict, podsRead, error) {
	request := policy.NewRequest(Submission(csr))
	var pods podsRead
	if decider.Knows(request.Requester) { // for others it would cost parsing the request, and a call
		if query, ok := request.PodQuery(); ok {
			var err error
			if pods, err = findPods(ctx, client, query); err != nil {
				return nil, podsRead{}, err
			}
		}
	}
	return decider.Decide(request, pods.facts), pods, nil
}

// Judge gives the verdict on the request of that name as it is now, and writes
// nothing.
func Judge(
	ctx context.Context, client kubernetes.Interface, decider Decider, name string,
) (policy.Verdict, error) {
	api, err := csr.Discover(ctx, client)
	if err != nil {
		return nil, err
	}
	request, err := api.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	verdict, _, err := decide(ctx, client, decider, request)
	return verdict, err
}

// Submission takes from the object what a decision may see.
func Submission(csr *certificatesv1.CertificateSigningRequest) policy.Submission {
	s := policy.Submission{
		UID:         string(csr.UID),
		Name:        csr.Name,
		SignerName:  csr.Spec.SignerName,
		PEM:         csr.Spec.Request,
		Age:         time.Since(csr.CreationTimestamp.Time),
		ObjectFault: sizeFault(csr),
		Requester: policy.Requester{
			Username: csr.Spec.Username,
			UID:      csr.Spec.UID,
			Groups:   csr.Spec.Groups,
			Extra:    make(map[string][]string, len(csr.Spec.Extra)),
		},
	}
	for k, v := range csr.Spec.Extra {
		s.Requester.Extra[k] = v
	}
	for _, usage := range csr.Spec.Usages {
		s.Usages = append(s.Usages, policy.Usage(usage))
	}
	if csr.Spec.ExpirationSeconds != nil {
		s.Lifetime = time.Duration(*csr.Spec.ExpirationSeconds) * time.Second
	}
	return s
}

// granted prepares the certificate, and then approves, issues and publishes. Nothing is approved
// that cannot be signed now.
func (c *Controller) granted(
	ctx context.Context, csr *certificatesv1.CertificateSigningRequest, was state,
	grant *policy.Grant,
) (Result, policy.Verdict, error) {
	prepared, instead, err := c.Issuer.Prepare(ctx, grant)
	if err != nil {
		return resultNone, grant, fmt.Errorf("cannot sign now: %w", err)
	}
	switch v := instead.(type) {
	case *policy.Refusal:
		return c.refuseGranted(ctx, csr, was, v)
	case *policy.Waiting:
		return ResultOverBudget, v, errLookAgain
	}
	if was == pending && csr.Spec.SignerName == "" {
		err = c.publishFirst(ctx, csr, grant, prepared)
	} else {
		err = c.approveFirst(ctx, csr, was, grant, prepared)
	}
	switch {
	case apifault.TooLarge(err):
		return c.answerTooLarge(ctx, csr, grant)
	case err != nil:
		return resultNone, grant, err
	}
	return ResultIssued, grant, nil
}

// approveFirst approves a request that nobody has approved, and then issues.
func (c *Controller) approveFirst(
	ctx context.Context, csr *certificatesv1.CertificateSigningRequest, was state,
	grant *policy.Grant, prepared Prepared,
) (err error) {
	if was == pending {
		if csr, err = c.approve(ctx, csr, grant); err != nil {
			return err
		}
	}
	_, err = c.issue(ctx, csr, grant, prepared)
	return err
}

// publishFirst serves a request without a signer name the other way round: before Kubernetes
// 1.18 the controller manager signs whatever is approved and has no
// certificate yet, with the cluster's own CA and the requester's own subject.
func (c *Controller) publishFirst(
	ctx context.Context, csr *certificatesv1.CertificateSigningRequest, grant *policy.Grant,
	prepared Prepared,
) (err error) {
	if len(csr.Status.Certificate) == 0 {
		if csr, err = c.issue(ctx, csr, grant, prepared); err != nil {
			return err
		}
	}
	_, err = c.approve(ctx, csr, grant)
	return err
}

func (c *Controller) approve(
	ctx context.Context, csr *certificatesv1.CertificateSigningRequest, grant *policy.Grant,
) (*certificatesv1.CertificateSigningRequest, error) {
	ctx, cancel, err := c.election.Acting(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	csr = csr.DeepCopy()
	setCondition(csr, certificatesv1.CertificateApproved, "PolicyGranted",
		fmt.Sprintf("granted by rule %s of policy %.12s", grant.Rule(), grant.PolicyHash()))
	updated, err := c.requests.Load().UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{})
	return updated, written("approve", err)
}

// issue has the prepared certificate signed and writes it to the object that was decided on, and to
// no other.
func (c *Controller) issue(
	ctx context.Context, csr *certificatesv1.CertificateSigningRequest, grant *policy.Grant,
	prepared Prepared,
) (*certificatesv1.CertificateSigningRequest, error) {
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
	csr = csr.DeepCopy()
	csr.Status.Certificate = chain
	updated, err := c.requests.Load().UpdateStatus(ctx, csr, metav1.UpdateOptions{})
	if err != nil {
		return nil, written("publish the certificate", err)
	}
	if err := c.Issuer.Published(ctx, grant.RequestUID()); err != nil {
		c.Logger.Error("the certificate is published, but the journal could not record that",
			"request", csr.Name, "uid", csr.UID, "error", err)
	}
	return updated, nil
}

// notOurs reports whether the request is another signer's: before 1.18 all share the unset name.
func notOurs(csr *certificatesv1.CertificateSigningRequest, refusal *policy.Refusal) bool {
	return csr.Spec.SignerName == "" && refusal.UnknownRequester()
}

// refuseGranted refuses a request that the policy grants and that can never be issued. If the
// journal has an earlier certificate for it, the condition comes first and then the line that
// nobody will take that certificate.
func (c *Controller) refuseGranted(
	ctx context.Context, csr *certificatesv1.CertificateSigningRequest, was state,
	refusal *policy.Refusal,
) (Result, policy.Verdict, error) {
	result, verdict, err := c.refuse(ctx, csr, was, refusal)
	if err == nil && refusal.Code() == policy.FormerCertificate {
		c.orphan(ctx, csr, refusal.Reasons[0].Message)
	}
	return result, verdict, err
}

// orphan records that a refused request will not take its certificate. If that fails, the next
// reconciliation records it.
func (c *Controller) orphan(
	ctx context.Context, csr *certificatesv1.CertificateSigningRequest, why string,
) {
	if err := c.Issuer.Orphaned(ctx, string(csr.UID), why); err != nil {
		c.Logger.Error("the request is refused, but the journal could not record that its certificate is given up",
			"request", csr.Name, "uid", csr.UID, "error", err)
	}
}

// finish denies a pending request, and fails one that is approved, which cannot be taken back.
func (c *Controller) finish(
	ctx context.Context, csr *certificatesv1.CertificateSigningRequest, was state, reason,
	message string,
) error {
	ctx, cancel, err := c.election.Acting(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	csr = csr.DeepCopy()
	switch was {
	case pending:
		setCondition(csr, certificatesv1.CertificateDenied, reason, message)
		_, err = c.requests.Load().UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{})
	case approved:
		setCondition(csr, certificatesv1.CertificateFailed, reason, message)
		_, err = c.requests.Load().UpdateStatus(ctx, csr, metav1.UpdateOptions{})
	}
	return written("write the refusal", err)
}

// refuse denies a pending request, and fails one that someone else has approved: an approval is no
// way round the policy.
func (c *Controller) refuse(
	ctx context.Context, csr *certificatesv1.CertificateSigningRequest, was state,
	refusal *policy.Refusal,
) (Result, policy.Verdict, error) {
	if !hasRoom(csr, roomForRefusal) {
		return c.ignore(csr, refusal)
	}
	err := c.finish(ctx, csr, was, string(refusal.Code()), refusal.Message())
	switch {
	case apifault.TooLarge(err):
		return c.ignore(csr, refusal)
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

func setCondition(
	csr *certificatesv1.CertificateSigningRequest, kind certificatesv1.RequestConditionType,
	reason, message string,
) {
	now := metav1.Now()
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: kind, Status: corev1.ConditionTrue, Reason: reason, Message: message,
		LastUpdateTime: now, LastTransitionTime: now,
	})
}
