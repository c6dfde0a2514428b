package daemon

import (
	"hsm-signer/cmd/hsm-signer/internal/stuck"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// answeredSink has the watch for stuck pods know what was issued.
type answeredSink struct{ stuck *stuck.Watch }

// Report is [kube.Sink]'s.
func (s answeredSink) Report(r kube.Report) {
	o, isOutcome := r.(kube.Outcome)
	if grant, granted := o.Verdict.(*policy.Grant); isOutcome && granted &&
		o.Result == kube.ResultIssued && !grant.OfPod() { // pods start only with their volumes
		s.stuck.Answered(grant.Requester(), o.UID, o.At.Add(-o.Age))
	}
}

// refusalSink records each refusal in the log next to the journal.
type refusalSink struct{ journal *journal.Journal }

// Report is [kube.Sink]'s.
func (s refusalSink) Report(r kube.Report) {
	if o, is := r.(kube.Outcome); is && o.Result == kube.ResultRefused {
		s.journal.Refused(decision(o))
	}
}
