package daemon

import (
	"fmt"
	"os"

	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// shadowLog is what a shadow keeps in its state directory: every verdict.
type shadowLog struct {
	dir string
	log *journal.Decisions
}

// newShadowLog returns the log in a directory. The caller must call stop.
func newShadowLog(dir string) *shadowLog {
	return &shadowLog{dir, journal.OpenDecisions(dir, journal.ShadowLog, 0)}
}

// makeDir makes the state directory if there is none.
func (l *shadowLog) makeDir() error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return exit.With(exit.Config, fmt.Errorf("STATE_DIR: %w; name a directory "+
			"that hsm-signer may write: a shadow keeps its decisions there", err))
	}
	return nil
}

// stop writes what waits, and closes the log.
func (l *shadowLog) stop() { _ = l.log.Close() } // what could not be written is lost

// configure has a controller only judge, under the CA, and keeps its verdicts.
func (l *shadowLog) configure(c *kube.Config, ca *issuer.CA) {
	c.Decider = judge.Judge{Decider: c.Decider, CA: ca}
	c.Sinks = append(c.Sinks, l)
}

// Report is [kube.Sink]'s: it records every verdict.
func (l *shadowLog) Report(r kube.Report) {
	if o, is := r.(kube.Outcome); is && o.Verdict != nil {
		l.log.Record(decision(o))
	}
}

// decision is the verdict of an outcome, for a log.
func decision(o kube.Outcome) journal.Decision {
	d := journal.Decision{UID: o.UID, Name: o.Name, Signer: o.Signer, Username: o.Requester}
	switch v := o.Verdict.(type) {
	case *policy.Grant:
		d.Verdict, d.Rule, d.Names = "granted", v.Rule(), v.Names()
		d.PolicyHash, d.RequestSHA256 = v.PolicyHash(), v.RequestSHA256()
	case *policy.Waiting:
		d.Verdict, d.Rule, d.Missing = "waiting", v.Rule, v.Missing
	case *policy.Refusal:
		d.Verdict, d.PolicyHash, d.RequestSHA256 = "refused", v.PolicyHash, v.RequestSHA256
		d.Reasons = v.Reasons
	}
	return d
}
