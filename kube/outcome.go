package kube

import (
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"

	"hsm-signer/policy"
)

// A Result says how far a sync took a request.
type Result string

// Every Result there is.
const (
	ResultIssued     Result = "issued"
	ResultRefused    Result = "refused" // denied, or failed when someone else had approved it
	ResultWaiting    Result = "waiting" // for a fact, such as the pod's IP
	ResultOverBudget Result = "over budget"
	ResultFault      Result = "fault"
	ResultWouldIssue Result = "would issue" // these two in a shadow
	ResultWouldDeny  Result = "would refuse"
)

// An Outcome is how one sync of a request ended, for people to read. Name is the requester's to choose,
// and so is part of Reason.
type Outcome struct {
	At        time.Time
	Result    Result
	Name, UID string // of the request
	Signer    string
	Requester string // the username
	Rule      string
	Reason    string        // why it is not issued
	Age       time.Duration // of the request, which the API server counts in whole seconds
}

// ended tells the observer how a sync of the request ended.
func (c *Controller) ended(csr *certificatesv1.CertificateSigningRequest, result Result, rule, reason string) {
	now := time.Now()
	c.Observer.Ended(Outcome{
		At: now, Result: result, Name: csr.Name, UID: string(csr.UID), Signer: csr.Spec.SignerName, Requester: csr.Spec.Username,
		Rule: rule, Reason: reason, Age: max(0, now.Sub(csr.CreationTimestamp.Time)),
	})
}

// endedShadow tells the observer what would have come of the request.
func (c *Controller) endedShadow(csr *certificatesv1.CertificateSigningRequest, verdict policy.Verdict) {
	switch v := verdict.(type) {
	case *policy.Grant:
		c.ended(csr, ResultWouldIssue, v.Rule(), "")
	case *policy.Refusal:
		c.ended(csr, ResultWouldDeny, v.Rule(), v.String())
	case *policy.Waiting:
		c.ended(csr, ResultWaiting, v.Rule, v.Missing)
	}
}
