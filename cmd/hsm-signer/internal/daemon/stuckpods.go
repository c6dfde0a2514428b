package daemon

import (
	"fmt"
	"strings"

	"hsm-signer/cmd/hsm-signer/internal/stuck"
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

// stuckShown is how many stuck pods the status page names.
const stuckShown = 5

// stuckHints are what the status page says of stuck pods.
func stuckHints(r stuck.Report) (hints []string) {
	if r.Fault != nil {
		hints = append(hints,
			"Which pods are stuck without their certificate is not known: "+r.Fault.Error())
	}
	if len(r.Pods) == 0 {
		return hints
	}
	var commands []string
	for _, pod := range r.Pods[:min(len(r.Pods), stuckShown)] {
		commands = append(commands, pod.Delete())
	}
	more := ""
	if n := len(r.Pods) - len(commands); n > 0 {
		more = fmt.Sprintf("; and %d more, which \"hsm-signer audit list --stuck\" lists", n)
	}
	return append(hints, fmt.Sprintf("Pods that run without the certificate that was issued to "+
		"them: %d. Delete them, so that they ask again: %s%s. docs/runbook.md: HSMSignerPodsStuck",
		len(r.Pods), strings.Join(commands, "; "), more))
}
