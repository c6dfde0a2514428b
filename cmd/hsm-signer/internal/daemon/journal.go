package daemon

import (
	"context"
	"time"

	"hsm-signer/hsm"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
)

// probeTimeout bounds the wait for a line that says that a test signature is made.
const probeTimeout = 5 * time.Second

// recordProbes returns what the key calls before each test signature: it records that one is about
// to be made, and keeps it from being made if the journal is not open.
func recordProbes(j *journal.Journal) func(context.Context, hsm.ProbeTime) error {
	return func(ctx context.Context, when hsm.ProbeTime) error {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		return j.Append(ctx, journal.Probe{When: string(when), Text: hsm.ProbeText})
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
