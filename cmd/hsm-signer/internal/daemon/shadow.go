package daemon

import (
	"fmt"
	"os"

	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// shadowLog is what a shadow keeps in its state directory: every verdict.
type shadowLog struct{ *journal.Decisions }

// openShadowLog makes the state directory when there is none.
func openShadowLog(dir string) (shadowLog, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return shadowLog{}, exit.With(exit.Config, fmt.Errorf("STATE_DIR: %w; name a directory "+
			"that hsm-signer may write: a shadow keeps its decisions there", err))
	}
	return shadowLog{journal.OpenDecisions(dir, journal.ShadowLog, 0)}, nil
}

// Report is [kube.Sink]'s: it records every verdict.
func (l shadowLog) Report(r kube.Report) {
	if o, is := r.(kube.Outcome); is && o.Verdict != nil {
		l.Record(decision(o))
	}
}

// decision is the verdict of an outcome, for a log.
func decision(o kube.Outcome) journal.Decision {
	d := journal.Decision{UID: o.UID, Name: o.Name, Signer: o.Signer, Username: o.Requester}
	switch v := o.Verdict.(type) {
	case *policy.Grant:
		d.Verdict, d.Rule, d.Names, d.PolicyHash, d.RequestSHA256 = "granted", v.Rule(), v.Names(), v.PolicyHash(), v.RequestSHA256()
	case *policy.Waiting:
		d.Verdict, d.Rule, d.Missing = "waiting", v.Rule, v.Missing
	case *policy.Refusal:
		d.Verdict, d.PolicyHash, d.RequestSHA256 = "refused", v.PolicyHash, v.RequestSHA256
		d.Reasons = v.Reasons
	}
	return d
}
