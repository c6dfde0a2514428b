package soak

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// The files of the report, in this directory.
const (
	resultsFile = "results.json"
	reportFile  = "report.md"
)

// A row of the report says what was done, what must hold, and what was measured.
type row struct {
	Number   int       `json:"row"`
	Test     string    `json:"test"`
	Did      string    `json:"did"`
	Must     string    `json:"must"`
	Measured []string  `json:"measured"`
	Held     bool      `json:"held"`
	Took     string    `json:"took"`
	Ended    time.Time `json:"ended"`
	late     bool
}

// begin starts a row. It is written when the test ends, so an interrupted soak keeps its finished
// rows.
func begin(t *testing.T, number int, did, must string) *row {
	t.Helper()
	r := &row{Number: number, Test: t.Name(), Did: did, Must: must}
	began := time.Now()
	t.Cleanup(func() {
		r.Held, r.Took = !t.Failed() && !r.late, time.Since(began).Round(time.Second).String()
		r.Ended = time.Now().UTC().Truncate(time.Second)
		t.Logf("%s\nmust be: %s\nmeasured: %s", r.Did, r.Must, strings.Join(r.Measured, "; "))
		if !full {
			return
		}
		if err := r.write(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// measured adds a figure to the row.
func (r *row) measured(format string, args ...any) {
	r.Measured = append(r.Measured, fmt.Sprintf(format, args...))
}

// within makes the report say "not held" if something took longer than its deadline. The test does
// not fail: durations depend on the machine too.
func (r *row) within(took, deadline time.Duration) {
	r.late = r.late || took > deadline
}

// must makes the report say "not held" unless the condition holds. The test does not fail:
// throughput depends on the machine too.
func (r *row) must(holds bool) { r.late = r.late || !holds }

// write writes the row to the report, instead of the row of an earlier run.
func (r *row) write() error {
	var rows []*row
	text, err := os.ReadFile(resultsFile)
	if err == nil {
		err = json.Unmarshal(text, &rows)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	rows = slices.DeleteFunc(rows, func(other *row) bool { return other.Test == r.Test })
	rows = append(rows, r)
	slices.SortStableFunc(rows, func(a, b *row) int { return a.Number - b.Number })
	if text, err = json.MarshalIndent(rows, "", "  "); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(resultsFile, append(text, '\n'), 0o644),
		os.WriteFile(reportFile, []byte(render(rows)), 0o644),
	)
}

// render returns the report for people.
func render(rows []*row) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# The soak

Written by `+"`make soak`"+`: the real API server and etcd, SoftHSM behind a shim that writes down
what is signed, and hsm-signer as a process of its own, on %d processors (%s/%s) that all of them
share.
[docs/failure-modes.md](../../docs/failure-modes.md) describes what to expect and what to do.

| What was done | Must be | Measured | |
|---|---|---|---|
`, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)
	for _, r := range rows {
		verdict := "held"
		if !r.Held {
			verdict = "**NOT HELD**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s; %s, %s |\n", r.Did, r.Must,
			strings.Join(r.Measured, "<br>"), verdict, r.Took, r.Ended.Format(time.DateOnly))
	}
	return b.String()
}

// seconds formats a duration for the report.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// longest returns the longest duration, or 0 if there is none.
func longest(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	return slices.Max(all)
}
