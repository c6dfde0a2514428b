package bench

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/load"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// An arm of a comparison answers the requests of one run: hsm-signer with these settings, or
// nothing.
type arm struct {
	name   string
	signer bool
	env    []string
}

// The arms that the benchmarks compare.
var (
	nobody    = arm{name: "no signer"}
	immediate = arm{"answers immediately", true, []string{"ANSWER_RATE=unlimited"}}
	oneByOne  = arm{"one write at a time", true, []string{"ANSWER_RATE=unlimited", "WORKERS=1"}}
	paced     = arm{"paced", true, nil}
)

// programs are the paths of the programs that the runs start.
type programs struct{ signer, client string }

// buildPrograms builds the programs in a directory that lasts as long as the benchmark.
func buildPrograms(b *testing.B) programs {
	b.Helper()
	dir := b.TempDir()
	p := programs{filepath.Join(dir, "hsm-signer"), filepath.Join(dir, "calicoclient")}
	must.OK(b, testenv.Build(b.Context(), p.signer))
	must.OK(b, testenv.BuildClient(b.Context(), p.client))
	return p
}

// A fixture is a fresh API server with its etcd, a token with a CA, and a journal.
type fixture struct {
	*testenv.Env
	ca    testenv.CA
	state string
}

// fixture starts a fixture. The caller closes it.
func (p programs) fixture(b *testing.B) *fixture {
	b.Helper()
	options := testenv.Options{Dir: b.TempDir(), Binary: p.signer, Progress: os.Stderr}
	made := must.Get(testenv.New(b.Context(), options))(b)
	ca, _, err := made.CreateCA(b.Context(), "ecdsa-p256")
	if err != nil {
		b.Fatal(errors.Join(err, made.Close()))
	}
	return &fixture{made, ca, filepath.Join(b.TempDir(), "state")}
}

func (f *fixture) close(b *testing.B) {
	b.Helper()
	must.OK(b, f.Close())
}

// start starts the arm's hsm-signer, with a budget that no benchmark exceeds, and waits until it is
// ready. The caller stops it.
func (f *fixture) start(b *testing.B, a arm, env ...string) (d *testenv.Daemon, stop func()) {
	b.Helper()
	if !a.signer {
		return nil, func() {}
	}
	policy := must.Get(f.WithBudget(b.Context(), f.ca, "calico", testenv.LargeBudget))(b)
	env = slices.Concat([]string{policy, "STATE_DIR=" + f.state}, a.env, env)
	d = must.Get(f.Run(b.Context(), f.ca, env...))(b)
	must.OK(b, d.WaitReady(b.Context()))
	return d, func() { must.OK(b, d.Shutdown()) }
}

// node is the component whose pods request certificates. One runs on each node.
func node() calico.Component { return calico.OpenSource("cluster.local")[0] }

// clients runs this many clients on a fresh API server, as the plan says.
func (p programs) clients(b *testing.B, a arm, count int, plan load.Plan) load.Report {
	b.Helper()
	return p.onFreshServer(b, a, count, func(pods []load.Pod, kubelet ended) load.Report {
		plan.Ended = kubelet
		return load.Run(b.Context(), pods, plan)
	})
}

// processes runs this many clients at once on a fresh API server, each a process with 10m of CPU.
func (p programs) processes(b *testing.B, a arm, count int) load.Report {
	b.Helper()
	return p.onFreshServer(b, a, count, func(pods []load.Pod, kubelet ended) load.Report {
		clients := load.Processes{Binary: p.client, MilliCPU: 10, Ended: kubelet}
		return must.Get(clients.Run(b.Context(), pods))(b)
	})
}

// ended is called when a client has ended, as its kubelet would notice.
type ended = func(i int, outcome load.Outcome, issued bool)

// onFreshServer creates the pods, starts the arm, and runs the clients. A client that could not
// create its request fails the benchmark.
func (p programs) onFreshServer(
	b *testing.B, a arm, count int, ask func(pods []load.Pod, kubelet ended) load.Report,
) load.Report {
	b.Helper()
	fresh := p.fixture(b)
	defer fresh.close(b)
	pods := must.Get(fresh.LoadPods(b.Context(), node(), count))(b)
	_, stop := fresh.start(b, a)
	report := ask(pods, fresh.Kubelet(b.Context(), pods, b.Error))
	terminated := must.Get(load.Terminated(b.Context(), fresh.Cluster.Client()))(b)
	stop()
	fmt.Fprintf(os.Stderr, "%s: %s; terminated watches %d\n", a.name, report, terminated)
	if report.Broken > 0 {
		b.Fatalf("%d clients could not ask; the first: %v", report.Broken, report.Errors[0])
	}
	return report
}

// pairs returns the number of pairs of runs, or of single runs, of a benchmark.
func pairs(b *testing.B) int {
	b.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv("PAIRS"), "9"))
	if err != nil || n < 1 {
		b.Fatalf("PAIRS is %q, want a number of runs", os.Getenv("PAIRS"))
	}
	return n
}

// longRuns returns the number of runs of a benchmark whose runs take many minutes.
func longRuns(b *testing.B) int {
	b.Helper()
	return min(pairs(b), 3)
}

// usualPerEvent is the time that a client needs for an event, unless PER_EVENT is set.
const usualPerEvent = 15 * time.Millisecond

func perEvent(b *testing.B) time.Duration {
	b.Helper()
	d, err := time.ParseDuration(cmp.Or(os.Getenv("PER_EVENT"), usualPerEvent.String()))
	if err != nil || d <= 0 {
		b.Fatalf("PER_EVENT is %q, want a time such as 3ms", os.Getenv("PER_EVENT"))
	}
	return d
}

// inPairs measures both arms alternately, each first in every second pair, and prints each pair.
// keep adds the values of a pair to the series.
func inPairs[T any](b *testing.B, one, other arm, measure func(arm) T, keep func(one, other T)) {
	b.Helper()
	for pair := range pairs(b) {
		var first, second T
		if pair%2 == 0 {
			first, second = measure(one), measure(other)
		} else {
			second, first = measure(other), measure(one)
		}
		fmt.Fprintf(os.Stderr, "%s, pair %d: %s: %v | %s: %v\n",
			b.Name(), pair+1, one.name, first, other.name, second)
		keep(first, second)
	}
}
