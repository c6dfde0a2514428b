package kube

import (
	"github.com/hashicorp/go-hclog"

	"hsm-signer/policy"
)

// logSink writes a line for each outcome and each deletion.
type logSink struct{ logger hclog.Logger }

// Report is [Sink]'s.
func (l logSink) Report(r Report) {
	switch r := r.(type) {
	case Outcome:
		l.outcome(r)
	case Deletion:
		l.logger.Info("deleted a finished request", "request", r.Name, "uid", r.UID, "signer",
			r.Signer)
	}
}

func (l logSink) outcome(o Outcome) {
	log := l.logger.With("request", o.Name, "uid", o.UID, "signer", o.Signer, "requester",
		o.Requester)
	switch o.Result {
	case ResultIssued, ResultWouldIssue:
		message := map[Result]string{ResultIssued: "issued",
			ResultWouldIssue: "shadow: would grant"}[o.Result]
		if grant, is := o.Verdict.(*policy.Grant); is {
			log.Info(message, "rule", o.Rule, "names", grant.Names())
		}
	case ResultRefused:
		log.Warn("refused", "reasons", o.Reason)
	case ResultWouldDeny:
		log.Warn("shadow: would refuse", "reasons", o.Reason)
	case ResultWaiting:
		log.Info("waiting for a fact", "rule", o.Rule, "missing", o.Reason)
	case ResultOverBudget:
		log.Warn("over budget; the request stays as it is and waits", "budget", o.Reason)
	case ResultHeld:
		log.Warn("refused, but held open for a running pod", "reasons", o.Reason)
	case ResultFault:
		log.Error("a fault; the request stays as it is and is tried again", "error", o.Reason)
	}
}
