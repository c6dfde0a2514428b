package bench

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// repeats returns the number of runs of each contender.
func repeats(b *testing.B) int { return setting(b, "PAIRS", 5) }

// setting returns the variable, a number of at least one, or its default.
func setting(b *testing.B, variable string, usual int) int {
	b.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv(variable), strconv.Itoa(usual)))
	if err != nil || n < 1 {
		b.Fatalf("%s is %q, want a number of at least 1", variable, os.Getenv(variable))
	}
	return n
}

// A contender answers the requests of a run.
type contender struct {
	name   string
	signer string // whose requests it answers
	// start starts it. The process ID is 0 if it runs in this process.
	start func(b *testing.B) (pid int, stop func())
}

// product is hsm-signer with these settings and a new journal.
func (f *fixture) product(name string, env ...string) contender {
	return contender{name, testenv.SignerName, func(b *testing.B) (int, func()) {
		state := "STATE_DIR=" + filepath.Join(b.TempDir(), "state")
		d, stop := f.start(b, paced, append([]string{state}, env...)...)
		return d.PID(), stop
	}}
}

// bare is the bare loop.
func bare(name string, l *softLoop) contender {
	return contender{name, l.signer, func(b *testing.B) (int, func()) {
		return 0, inBackground(b, l.run)
	}}
}

// inBackground runs the function until stop is called. It returns when the function calls started.
func inBackground(b *testing.B, run func(ctx context.Context, started func()) error) (stop func()) {
	ctx, cancel := context.WithCancel(b.Context())
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- run(ctx, func() { close(started) }) }()
	select {
	case <-started:
	case err := <-ended:
		b.Fatal(err)
	}
	return func() {
		cancel()
		if err := <-ended; err != nil && ctx.Err() == nil {
			b.Fatal(err)
		}
	}
}

// An outcome is what one run measured.
type outcome struct {
	timing
	lost          int           // requests that were removed without an answer
	before, after usage         // of the contender, unless it runs in this process
	apiserver     time.Duration // CPU time of the API server and etcd
}

// String is for the log of a benchmark.
func (o outcome) String() string {
	text := fmt.Sprintf("%s, API server and etcd %.2f ms of CPU each", o.timing,
		o.perCertificate(o.apiserver))
	if o.lost > 0 {
		text += fmt.Sprintf("; %d lost", o.lost)
	}
	if o.after.cpu > 0 {
		text += fmt.Sprintf("; process: %.2f ms of CPU each, %.0f MiB idle, %.0f after, "+
			"%.0f at most (not of files: %.0f idle, %.0f after)", o.cpuMilliseconds(),
			o.before.rss, o.after.rss, o.after.peak, o.before.anonymous, o.after.anonymous)
	}
	return text
}

// cpuMilliseconds returns the contender's CPU time for one certificate.
func (o outcome) cpuMilliseconds() float64 { return o.perCertificate(o.after.cpu - o.before.cpu) }

// perCertificate returns the time for one certificate, in milliseconds.
func (o outcome) perCertificate(d time.Duration) float64 {
	return float64(d.Milliseconds()) / float64(len(o.timing))
}

// A course is what runs consist of: this many requests of a wave.
type course struct {
	*fixture
	kind       kind                 // of the requests
	client     kubernetes.Interface // the admin's
	requesters []requester
	usages     []certificatesv1.KeyUsage // of CSRs; nil: Calico's
	count      int
	keep       bool // the requests after a run
}

// newCourse starts a fixture with as many CSRs as REQUESTS says.
func newCourse(b *testing.B, usual int) *course {
	b.Helper()
	return newCourseOf(b, csrs, setting(b, "REQUESTS", usual))
}

// newCourseOf starts a fixture, and creates a pod for each request.
func newCourseOf(b *testing.B, k kind, requests int) *course {
	b.Helper()
	f := buildPrograms(b).fixture(b)
	b.Cleanup(func() { f.close(b) })
	requesters := must.Get(f.newRequesters(b.Context(), k, requests))(b)
	return &course{f, k, f.protobufClient(b), requesters, nil, requests, false}
}

// limit is the bare loop that approves CSRs, reads pods and issues.
func (c *course) limit(b *testing.B) *softLoop {
	b.Helper()
	limit := newSoftLoop(b, c.client, testenv.SignerName)
	limit.kind, limit.approve, limit.readPod = c.kind, true, true
	return limit
}

// storm starts the contender and creates all requests as fast as possible.
func (c *course) storm(b *testing.B, with contender) (o outcome) {
	b.Helper()
	bodies := c.bodies(b, with)
	pid, stop := with.start(b)
	watching := c.observe(b, with.signer)
	o = c.measured(b, pid, func() timing {
		return watching.wait(b, c.create(b, bodies))
	})
	o.lost = watching.lost
	stop()
	if !c.keep {
		must.OK(b, c.kind.deleteAll(b.Context(), c.client))
	}
	return o
}

// backlog creates all requests, approves them if asked, and then starts the contender.
func (c *course) backlog(b *testing.B, with contender, approve bool) (o outcome) {
	b.Helper()
	c.create(b, c.bodies(b, with))
	if approve {
		c.approveAll(b, with.signer)
	}
	watching := c.observe(b, with.signer)
	pid, stop := with.start(b)
	o = c.measured(b, pid, func() timing { return watching.wait(b, nil) })
	stop()
	must.OK(b, c.kind.deleteAll(b.Context(), c.client))
	return o
}

// bodies returns the bodies of the calls that create the requests of a run.
func (c *course) bodies(b *testing.B, with contender) [][]byte {
	b.Helper()
	return must.Get(wave{c.kind, with.signer, c.usages}.bodies(c.requesters, c.count))(b)
}

// measured adds to a run what the processes used during it.
func (c *course) measured(b *testing.B, pid int, run func() timing) (o outcome) {
	b.Helper()
	servers := func() (sum time.Duration) {
		for _, pid := range c.servers(b) {
			sum += usageOf(b, pid).cpu
		}
		return sum
	}
	before := servers()
	if pid != 0 {
		o.before = usageOf(b, pid)
	}
	o.timing = run()
	if pid != 0 {
		o.after = usageOf(b, pid)
	}
	o.apiserver = servers() - before
	return o
}

// approveAll approves the requests of a signer name.
func (c *course) approveAll(b *testing.B, signer string) {
	b.Helper()
	requests := c.client.CertificatesV1().CertificateSigningRequests()
	list := must.Get(requests.List(b.Context(), metav1.ListOptions{
		FieldSelector: "spec.signerName=" + signer,
	}))(b)
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(stormAskers)
	for i := range list.Items {
		request := &list.Items[i]
		group.Go(func() error {
			request.Status.Conditions = append(request.Status.Conditions, approved())
			_, err := requests.UpdateApproval(ctx, request.Name, request, metav1.UpdateOptions{})
			return err
		})
	}
	must.OK(b, group.Wait())
}

// inTurns has the contenders run in turns, each first in some of the rounds, and calls keep with
// the outcomes of each round, by name.
func inTurns(b *testing.B, measure func(contender) outcome, keep func(map[string]outcome),
	all ...contender) {
	b.Helper()
	for round := range repeats(b) {
		of := map[string]outcome{}
		for i := range all {
			one := all[(round+i)%len(all)]
			of[one.name] = measure(one)
			fmt.Fprintf(os.Stderr, "%s, round %d: %s: %s\n", b.Name(), round+1, one.name,
				of[one.name])
		}
		keep(of)
	}
}
