package soak

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"hsm-signer/integration/faultproxy"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// A rotation is a pair of replicas with two CAs, which changes from the one to the other.
type rotation struct {
	*pair
	fixture *fixture
	cas     [2]testenv.CA // the former and the next
	env     []string      // of the commands
	checked string        // the journals that the last answer demands to be checked
}

// newRotation creates the next CA, and starts both replicas with these settings.
func newRotation(t *testing.T, s *fixture, env ...string) *rotation {
	t.Helper()
	dir := t.TempDir()
	next := testenv.CA{KeyLabel: filepath.Base(filepath.Dir(dir)), // of this run of the test
		CertFile: filepath.Join(dir, "next.crt")}
	_, stderr, code := s.Command(t.Context(), next, nil, "ca", "create", "--key-type",
		"ecdsa-p256", "--subject", "CN=Next CA,O=Example", "--out", next.CertFile)
	if code != 0 {
		t.Fatalf("ca create: exit code %d: %s", code, stderr)
	}
	r := &rotation{fixture: s, cas: [2]testenv.CA{s.ca, next}, env: []string{
		"LEADER_ELECT=true", "LEASE_NAMESPACE=" + leaseNamespace, "ROTATION_TRUST_TIME=1s",
		"NEXT_CA_CERT_FILE=" + next.CertFile, "NEXT_CA_KEY_LABEL=" + next.KeyLabel}}
	r.deleteLease(t)
	t.Cleanup(func() { r.deleteLease(t) }) // other tests have one CA
	r.pair = newPair(t, s, slices.Concat(r.env, env)...)
	return r
}

func (r *rotation) deleteLease(t *testing.T) {
	t.Helper()
	err := r.fixture.Cluster.Client().CoordinationV1().Leases(leaseNamespace).Delete(
		context.WithoutCancel(t.Context()), "hsm-signer", metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}

// freeLease has a leader that was killed give the lease up, so that nobody waits for its end.
func (r *rotation) freeLease(t *testing.T) {
	t.Helper()
	_, err := r.fixture.Cluster.Client().CoordinationV1().Leases(leaseNamespace).Patch(t.Context(),
		"hsm-signer", types.MergePatchType, []byte(`{"spec":{"holderIdentity":""}}`),
		metav1.PatchOptions{})
	must.OK(t, err)
}

// A step is a command below "ca rotate", and the phase that it leads to.
type step struct {
	phase string
	args  []string
}

var forced = []string{"--force", "--reason", "a test"}

var (
	announce      = step{"announced", []string{"announce"}}
	trust         = step{"trusted", []string{"trust"}}
	sign          = step{"signing", []string{"sign"}}
	retire        = step{"retired", append([]string{"retire"}, forced...)}
	backToSigning = step{"signing", []string{"back"}}
	backToTrusted = step{"trusted", []string{"back"}}
	backToStart   = step{"announced", []string{"back"}}
	backToNone    = step{"none", append([]string{"back"}, forced...)}
)

// signs returns which of the CAs signs in a phase.
func signs(phase string) int {
	if phase == "signing" || phase == "retired" {
		return 1
	}
	return 0
}

// ordered is what a command has printed.
type ordered struct {
	stdout, stderr string
	code           int
}

// order gives the command of a step.
func (r *rotation) order(ctx context.Context, s step, more ...string) (o ordered) {
	args := slices.Concat([]string{"ca", "rotate"}, s.args, more)
	if s.args[0] == "sign" && r.checked != "" {
		args = append(args, "--checked", r.checked)
	}
	o.stdout, o.stderr, o.code = r.fixture.Command(ctx, r.cas[0], r.env, args...)
	return o
}

var namesJournals = regexp.MustCompile(`--checked ([0-9a-f,]+)`)

// take gives the command until nothing is missing any more that comes by itself, or by a
// confirmation.
func (r *rotation) take(t *testing.T, s step, more ...string) {
	t.Helper()
	must.Eventually(t, "the phase "+s.phase, func(ctx context.Context) (bool, error) {
		o := r.order(ctx, s, more...)
		if o.code == 0 {
			return true, nil
		}
		if found := namesJournals.FindStringSubmatch(o.stderr); found != nil {
			r.checked = found[1]
			return false, nil
		}
		for _, passes := range []string{"ROTATION_TRUST_TIME", "no replica leads",
			"no answer yet"} {
			if strings.Contains(o.stderr, passes) {
				return false, nil
			}
		}
		return false, errors.New(o.stderr)
	})
}

// restartPod returns a batch of requests of a new pod, and deletes the one that the batch was of:
// it was created before both CAs were trusted.
func (r *rotation) restartPod(t *testing.T, c *batch) *batch {
	t.Helper()
	c.waitForAll(t)
	must.OK(t, r.fixture.Cluster.DeletePod(t.Context(), c.kind.(csrs).pod.Pod))
	return r.fixture.newBatch(t)
}

// leaseSays returns the phase in the lease.
func (r *rotation) leaseSays(t *testing.T) string {
	t.Helper()
	lease, err := r.fixture.Cluster.Client().CoordinationV1().Leases(leaseNamespace).Get(
		t.Context(), "hsm-signer", metav1.GetOptions{})
	must.OK(t, err)
	found := phaseInJSON.FindStringSubmatch(lease.Annotations["hsm-signer/rotation"])
	if found == nil {
		return "none"
	}
	return found[1]
}

var phaseInJSON = regexp.MustCompile(`^\{"phase":"([a-z]+)"`)

// journalSays returns the phase in the last line of a journal that has one.
func (s *signer) journalSays(t *testing.T) string {
	t.Helper()
	phase := "none"
	for _, l := range s.journal(t) {
		if l.Kind == "rotation" {
			phase = l.Phase
		}
	}
	return phase
}

// A stepPoint is a place in a step at which its leader is killed: before or after a call of the API
// server. What follows the journal's line is a change in memory and then an Event, so a kill before
// the Event leaves what a kill before the change leaves.
type stepPoint struct {
	name       string
	after      bool // the call reaches the API server
	is         func(r *http.Request, phase string) bool
	inLease    bool // the phase
	inJournal  bool
	takenLater bool // by the next leader, which finds the order
}

var stepPoints = []stepPoint{
	{name: "before the lease has the phase", is: writesPhase, takenLater: true},
	{name: "after the lease has the phase and before the journal has it", after: true,
		is: writesPhase, inLease: true},
	{name: "after the journal has the phase and before anybody is told", is: tellsRotation,
		inLease: true, inJournal: true},
}

// writesPhase reports whether a call writes the phase into the lease.
func writesPhase(r *http.Request, phase string) bool {
	return r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/leases/hsm-signer") &&
		regexp.MustCompile(`(?s)hsm-signer/rotation[^-].{0,4}\{"phase":"`+phase+`"`).Match(
			faultproxy.Body(r))
}

// tellsRotation reports whether a call writes the Event about a step.
func tellsRotation(r *http.Request, _ string) bool {
	return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/events") &&
		strings.Contains(string(faultproxy.Body(r)), "CARotation")
}

// set has the process killed at the point. Until then it publishes no certificate.
func (at stepPoint) set(p *faultproxy.Proxy, phase string, kill func()) {
	kill = once(kill)
	fault := faultproxy.Before(kill)
	if at.after {
		fault = faultproxy.LoseAnswer(func(int) { kill() })
	}
	p.Set(func(r *http.Request) faultproxy.Fault {
		if at.is(r, phase) {
			return fault
		}
		return publishesNothing(r)
	})
}

// publishesNothing fails the publication of certificates.
func publishesNothing(r *http.Request) faultproxy.Fault {
	if faultproxy.Writes(r, "status") {
		return faultproxy.Answer(http.StatusServiceUnavailable)
	}
	return nil
}

// askUnpublished creates a request whose certificate a signer has, and does not publish.
func (r *rotation) askUnpublished(t *testing.T, p *faultproxy.Proxy, c *batch, of *signer) {
	t.Helper()
	p.Set(publishesNothing)
	request, err := c.askOne(t.Context())
	must.OK(t, err)
	must.Eventually(t, "a certificate in the journal", func(context.Context) (bool, error) {
		files, err := filepath.Glob(filepath.Join(of.state, "journal-*.jsonl"))
		for _, file := range files {
			text, err := os.ReadFile(file)
			must.OK(t, err)
			for line := range strings.Lines(string(text)) {
				if strings.Contains(line, `"signed"`) && strings.Contains(line,
					string(request.GetUID())) {
					return true, nil
				}
			}
		}
		return false, err
	})
}

// killedAt has the leader killed at a point of a step, when it has a certificate that it has not
// published. Then it is started again while the other one does not run, or the other one continues.
// Whoever leads follows the phase of the lease.
func (r *rotation) killedAt(t *testing.T, p *faultproxy.Proxy, c *batch, at stepPoint, s step,
	again bool) {
	t.Helper()
	leader := r.leader(t)
	r.take(t, s, "--dry-run") // so that nothing is missing
	if again {
		must.OK(t, r.daemons[1-leader].Shutdown())
	}
	r.askUnpublished(t, p, c, r.signers[leader])
	at.set(p, s.phase, func() {
		if err := r.daemons[leader].Kill(); err != nil {
			t.Error(err)
		}
	})
	answer := make(chan ordered, 1)
	go func() { answer <- r.order(t.Context(), s) }()
	waitForDeath(t, r.daemons[leader], at.name)
	p.Set(nil)
	if lease, journal := r.leaseSays(t), r.signers[leader].journalSays(t); (lease == s.phase) !=
		at.inLease || (journal == s.phase) != at.inJournal {
		t.Errorf("killed %s (%s): the lease says %s, the journal %s", at.name, s.phase, lease,
			journal)
	}
	r.freeLease(t)
	if again {
		r.start(t, leader)
	}
	leads := r.leader(t)
	if o := <-answer; o.code != 0 && !at.takenLater {
		t.Errorf("%s, %s: %s", s.phase, at.name, o.stderr)
	} else if o.code != 0 { // it was refused by a leader that knows other certificates
		r.take(t, s)
	}
	c.ask(t, 2)
	c.waitForAll(t)
	if lease, journal := r.leaseSays(t), r.signers[leads].journalSays(t); lease != s.phase ||
		journal != s.phase || leads == leader != again {
		t.Errorf("%s: %d of %d leads; the lease says %s, its journal %s", s.phase, leads, leader,
			lease, journal)
	}
	for i, d := range r.daemons {
		if !d.Running() {
			r.start(t, i)
		}
	}
}

// The leader of a rotation is killed at each point between the parts of a step.
func TestKilledAtEachStepOfARotation(t *testing.T) {
	report := begin(t, 32, "kill -9 of the leader at 3 points of each step of a rotation and back: "+
		"before and after the lease has the phase, and when the journal has it; it is started "+
		"again, or the other replica continues",
		"the phase of the lease is followed, and in the journal before it is used; every "+
			"certificate of the CA that signs in its phase; lost 0")
	p, through := shared.proxied(t)
	r := newRotation(t, shared, through)
	var batches []*batch
	kills := 0
	kill := func(at stepPoint, s step, again bool) {
		c := batches[len(batches)-1]
		r.killedAt(t, p, c, at, s, again)
		kills++
		if s.args[0] == trust.args[0] {
			batches = append(batches, r.restartPod(t, c))
		}
	}
	if full {
		batches = append(batches, shared.newBatch(t))
		for n := range 2 * len(stepPoints) {
			for _, s := range []step{announce, trust, sign, backToTrusted, sign, retire,
				backToSigning, backToTrusted, backToStart, backToNone} {
				kill(stepPoints[n/2], s, n%2 == 0)
			}
		}
	} else {
		r.take(t, announce)
		r.take(t, trust)
		batches = append(batches, shared.newBatch(t))
		kill(stepPoints[1], sign, true)
		kill(stepPoints[2], backToTrusted, true)
		kill(stepPoints[0], sign, false)
	}
	for _, d := range r.daemons {
		must.OK(t, d.Shutdown())
	}
	by := r.requireCAs(t, 1)
	requests := 0
	for _, c := range batches {
		requests += c.size()
	}
	report.measured("%d kills, %d requests, lost 0; %d certificates of the former CA, %d of the next",
		kills, requests, by[0], by[1])
	r.account(t, report, batches...)
}

// requireCAs requires that each certificate is of the CA that signs in its phase, or in one of the
// latest phases: in the order of its journal, and at the time by both journals. It returns how many
// each CA has signed.
func (r *rotation) requireCAs(t *testing.T, latest int) (by [2]int) {
	t.Helper()
	var steps []line // of both journals, in the order of the steps
	for _, s := range r.signers {
		steps = append(steps, linesOf(s.journal(t), "rotation")...)
	}
	slices.SortStableFunc(steps, func(a, b line) int { return a.Since.Compare(b.Since) })
	steps = slices.CompactFunc(steps, func(a, b line) bool { return a.Since.Equal(b.Since) })
	for _, s := range r.signers {
		lines := s.journal(t)
		of := r.issuers(t, lines)
		phases := []string{"none"}
		for _, l := range lines {
			if l.Kind == "rotation" {
				phases = append(phases, l.Phase)
			}
			ca, signed := of[l.Serial]
			if l.Kind != "intent" || !signed {
				continue
			}
			by[ca]++
			then := []string{"none"}
			for _, step := range steps {
				if !step.Since.After(l.Time) {
					then = append(then, step.Phase)
				}
			}
			for where, phases := range map[string][]string{"this journal": phases, "both": then} {
				if !slices.ContainsFunc(phases[max(0, len(phases)-latest):],
					func(phase string) bool { return signs(phase) == ca }) {
					t.Errorf("line %d: a certificate of the CA %d after the phases %v, by %s",
						l.Seq, ca, phases, where)
				}
			}
		}
	}
	return by
}

// linesOf returns the lines of a kind.
func linesOf(lines []line, kind string) []line {
	return slices.DeleteFunc(slices.Clone(lines), func(l line) bool { return l.Kind != kind })
}

// issuers returns which of the CAs has issued each certificate, by serial number.
func (r *rotation) issuers(t *testing.T, lines []line) map[string]int {
	t.Helper()
	of := map[string]int{}
	for _, l := range linesOf(lines, "signed") {
		cert, err := x509.ParseCertificate(l.Certificate)
		must.OK(t, err)
		for n, ca := range r.cas {
			text, err := os.ReadFile(ca.CertFile)
			must.OK(t, err)
			block, _ := pem.Decode(text)
			parsed, err := x509.ParseCertificate(block.Bytes)
			must.OK(t, err)
			if cert.CheckSignatureFrom(parsed) == nil {
				of[l.Serial] = n
			}
		}
		if _, known := of[l.Serial]; !known {
			t.Errorf("line %d: a certificate of neither CA", l.Seq)
		}
	}
	return of
}
