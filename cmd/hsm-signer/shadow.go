package main

import (
	"fmt"
	"os"

	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
)

// shadowLog is what a shadow keeps in its state directory: every verdict.
type shadowLog struct{ *journal.Decisions }

// openShadowLog makes the state directory when there is none.
func openShadowLog(dir string) (shadowLog, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return shadowLog{}, exit.With(exit.Config, fmt.Errorf("STATE_DIR: %w; name a directory that hsm-signer may write: a shadow keeps its decisions there", err))
	}
	return shadowLog{journal.OpenDecisions(dir, journal.ShadowLog, 0)}, nil
}

// Decided writes the verdict down.
func (l shadowLog) Decided(s policy.Submission, verdict policy.Verdict) {
	l.Record(decision(s, verdict))
}

// decision is the verdict for a log.
func decision(s policy.Submission, verdict policy.Verdict) journal.Decision {
	d := journal.Decision{UID: s.UID, Name: s.Name, Signer: s.SignerName, Username: s.Requester.Username}
	switch v := verdict.(type) {
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
