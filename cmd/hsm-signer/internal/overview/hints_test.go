package overview

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/stuck"
)

// A stuckReport is what was found.
type stuckReport stuck.Report

func (r stuckReport) Report() stuck.Report { return stuck.Report(r) }

// The page names a few stuck pods with the commands, and the metric counts all. While they are not
// known there is no number.
func TestStuckPodsAreAHint(t *testing.T) {
	var pods []stuck.Pod
	for n := range 7 {
		pods = append(pods, stuck.Pod{Namespace: "a", Name: fmt.Sprint("p", n)})
	}
	for _, c := range []struct {
		report stuck.Report
		metric string
		hints  []string
	}{
		{stuck.Report{}, "", nil},
		{stuck.Report{Known: true}, "hsm_signer_stuck_pods 0", nil},
		{stuck.Report{Known: true, Pods: pods[:1]}, "hsm_signer_stuck_pods 1",
			[]string{"issued to them: 1.", "again: kubectl -n a delete pod p0. docs/runbook.md"}},
		{stuck.Report{Known: true, Pods: pods}, "hsm_signer_stuck_pods 7",
			[]string{"issued to them: 7.", "delete pod p4; and 2 more"}},
		{stuck.Report{Fault: errors.New("no answer")}, "", []string{"is not known: no answer"}},
	} {
		m := metrics.New()
		m.Registry.MustRegister(metrics.StuckCollector{Watch: stuckReport(c.report)})
		metrics, hints := fixture.Scrape(m.Handler()), strings.Join(stuckHints(c.report), "\n")
		if !strings.Contains(metrics, c.metric) || c.metric == "" &&
			strings.Contains(metrics, "hsm_signer_stuck_pods") {
			t.Errorf("%+v: the metrics lack %q, or have a number", c.report, c.metric)
		}
		for _, want := range c.hints {
			if !strings.Contains(hints, want) {
				t.Errorf("%+v: %q is not in %q", c.report, want, hints)
			}
		}
		if len(c.hints) == 0 && hints != "" {
			t.Errorf("%+v: %q", c.report, hints)
		}
	}
}
