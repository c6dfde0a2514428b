package kube

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"hsm-signer/policy"
)

// A Report is what a controller has to tell: an [Outcome], a [LeaderChange], a [Census], a
// [RequestCount] or a [Deletion]. Everything that a controller tells is told once, as a report;
// metrics, the status page, the logs and Events are made from it.
type Report interface{ report() }

func (Outcome) report()      {}
func (LeaderChange) report() {}
func (Census) report()       {}
func (RequestCount) report() {}
func (Deletion) report()     {}

// A Sink receives reports. Report returns at once and is safe for concurrent use.
type Sink interface{ Report(r Report) }

// sinks passes each report to all of them, in their order.
type sinks []Sink

func (s sinks) Report(r Report) {
	for _, sink := range s {
		sink.Report(r)
	}
}

// A Result says how far a sync took a request.
type Result string

// Every Result there is.
const (
	ResultIssued     Result = "issued"
	ResultRefused    Result = "refused" // denied, or failed when someone else had approved it
	ResultWaiting    Result = "waiting" // for a fact, such as the pod's IP
	ResultOverBudget Result = "over budget"
	ResultHeld       Result = "refusal held"
	ResultFault      Result = "fault"
	ResultWouldIssue Result = "would issue" // these two in a shadow
	ResultWouldDeny  Result = "would refuse"

	resultNone Result = "" // there is nothing to tell
)

// An Outcome is how one sync of a request ended. Name is the requester's to choose, and so is part
// of Reason.
type Outcome struct {
	At        time.Time
	Result    Result
	Object    corev1.ObjectReference
	Name, UID string // of the request
	Signer    string
	Requester string         // the username
	Verdict   policy.Verdict // the last one; nil if a fault came before it
	Rule      string         // of the verdict
	Reason    string         // why it is not issued
	Age       time.Duration  // of the request, which the API server counts in whole seconds
}

// A LeaderChange says that another controller has come to lead, or this one.
type LeaderChange struct{ Identity string }

// A Census counts the certificates on requests of our signers by their issuance. Only the leader
// knows it; nil means that it is not known now.
type Census struct{ Certificates map[Issuance]int }

// A RequestCount is the number of requests in the cluster, of all signers. Only the leader knows
// it.
type RequestCount struct {
	Requests int
	Known    bool
}

// A Deletion says that a finished request was deleted.
type Deletion struct{ Name, UID, Signer string }

// resultOf returns how far a sync takes a request that waits.
func resultOf(v *policy.Waiting) Result {
	switch {
	case v.Held != nil:
		return ResultHeld
	case v.Budget != nil:
		return ResultOverBudget
	}
	return ResultWaiting
}

// ruleOf returns the rule that a verdict is about.
func ruleOf(v policy.Verdict) string {
	switch v := v.(type) {
	case *policy.Grant:
		return v.Rule()
	case *policy.Refusal:
		return v.Rule()
	case *policy.Waiting:
		return v.Rule
	}
	return ""
}

// reasonOf returns why a verdict grants nothing, for the operator.
func reasonOf(v policy.Verdict) string {
	switch v := v.(type) {
	case *policy.Refusal:
		return v.String()
	case *policy.Waiting:
		return v.Missing
	}
	return ""
}
