package bench

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"

	"hsm-signer/integration/must"
)

// startTime is the result of a benchmark that ran once.
var startTime = regexp.MustCompile(`(?m)^BenchmarkLongJournal/start\S*\s+1\s+([0-9.e+]+) ns/op`)

// BenchmarkStart measures how long a journal of REQUESTS published requests takes to open. The
// benchmark of the journal makes it, opens it once, which writes its indexes, and then measures.
func BenchmarkStart(b *testing.B) {
	count := setting(b, "REQUESTS", 1_000_000)
	dir := b.TempDir()
	run := func(name string, times int) string {
		cmd := exec.CommandContext(b.Context(), "go", "test", "-run", "^$", "-timeout", "60m",
			"-bench", "^BenchmarkLongJournal$/^"+name+"$", "-benchtime", "1x",
			"-count", strconv.Itoa(times), "./issuer/journal")
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "JOURNAL_BENCH_DIR="+dir,
			"JOURNAL_BENCH_REQUESTS="+strconv.Itoa(count))
		output, err := cmd.CombinedOutput()
		if err != nil {
			b.Fatalf("%v: %s", err, output)
		}
		return string(output)
	}
	run("first_start", 1)
	output := run("start", repeats(b))
	s := newSeries(usualPerEvent)
	for _, found := range startTime.FindAllStringSubmatch(output, -1) {
		nanoseconds := must.Get(strconv.ParseFloat(found[1], 64))(b)
		s.add(b, "start_1m_s", nanoseconds/1e9)
	}
	if len(s.values) == 0 {
		b.Fatalf("no start was measured: %s", output)
	}
	b.ReportMetric(0, "ns/op")
}
