package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"hsm-signer/integration/faultproxy"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/testenv"
)

// hsm-signer is killed at random, also during its start, while requests arrive.
func TestKilledAtRandom(t *testing.T) {
	r := begin(t, 1, "kill -9, 200 times at random during 5,000 requests, restarted each time",
		"lost 0; certificates per UID ≤ 1; every C_Sign in the shim's log accounted for in the "+
			"journal; orphans 0")
	killAtRandom(t, r, shared.signer(t), shared.newBatch(t), of(8, 200), of(160, 5000))
}

// killAtRandom kills hsm-signer this often. At least 20 requests must come in each of its runs, so
// that it writes linesOfRun lines.
func killAtRandom(t *testing.T, r *row, s *signer, c *batch, kills, requests int) {
	t.Helper()
	var group sync.WaitGroup
	for range kills {
		d := s.start(t)
		group.Go(func() { c.ask(t, requests/kills) })
		waitForLines(t, d, rand.N(linesOfRun))
		must.OK(t, d.Kill())
	}
	group.Wait()
	d := s.startReady(t)
	took := c.waitForAll(t)
	must.OK(t, d.Shutdown())
	a := s.account(t)
	a.requireWhole(t, c)
	if a.orphans > 0 || len(a.certificates) != c.size() {
		t.Errorf("%d orphans, and %d requests with a certificate of %d", a.orphans,
			len(a.certificates), c.size())
	}
	r.measured("%d kills, %d requests", kills, c.size())
	r.measured("lost %d", c.size()-len(a.certificates))
	r.measured("most certificates for one UID %d", a.most())
	r.measuredSignatures(a)
	r.measured("orphans %d", a.orphans)
	r.measured("all issued %s after the last start", seconds(took))
}

// linesOfRun is the number of log lines that hsm-signer writes at least while it starts and serves
// the requests of one run of TestKilledAtRandom.
const linesOfRun = 24

// waitForLines waits until hsm-signer has logged this many lines.
func waitForLines(t *testing.T, d *testenv.Daemon, lines int) {
	t.Helper()
	must.Eventually(t, fmt.Sprintf("%d lines in the log", lines),
		func(context.Context) (bool, error) {
			return strings.Count(d.Log(), "\n") >= lines, nil
		})
}

func (r *row) measuredSignatures(a *account) {
	r.measured("C_Sign %d: %d of certificates (%d intents in the journal; the same bytes "+
		"signed again "+
		"%d times), %d of the test signature (%d lines in the journal); not in the journal %d",
		a.signatures, a.signatures-a.probes, a.intents, a.again, a.probes, a.probeLines,
		a.unaccounted)
}

// A point is a place in the code at which the process is killed: a call of the token or of the API
// server, so the code needs no hook.
type point struct {
	name string
	// set arranges that the process is killed there.
	set func(t *testing.T, s *signer, p *faultproxy.Proxy, kill func())
}

// once returns a function that calls do on its first call only.
func once(do func()) func() {
	var first sync.Once
	return func() { first.Do(do) }
}

func atCall(rule pkcs11shim.Rule) func(*testing.T, *signer, *faultproxy.Proxy, func()) {
	return func(t *testing.T, s *signer, _ *faultproxy.Proxy,
		_ func()) {
		must.OK(t, s.shim.Rules(rule))
	}
}

// atWrite kills the process when it writes that subresource: before the API server gets the call,
// or after it has committed the write and before the answer arrives.
func atWrite(subresource string, taken bool) func(*testing.T, *signer, *faultproxy.Proxy, func()) {
	return func(_ *testing.T, _ *signer, p *faultproxy.Proxy, kill func()) {
		kill = once(kill)
		fault := faultproxy.Before(kill)
		if taken {
			fault = faultproxy.LoseAnswer(func(int) { kill() })
		}
		p.Set(func(request *http.Request) faultproxy.Fault {
			if faultproxy.Writes(request, subresource) {
				return fault
			}
			return nil
		})
	}
}

var points = []point{
	{"before the approval is written", atWrite("approval", false)},
	{"after the approval is written", atWrite("approval", true)},
	{"before C_Sign: with the intent in the journal", atCall(pkcs11shim.Kill(pkcs11shim.Sign))},
	{"after C_Sign: signed, and nobody was told", atCall(pkcs11shim.KillAfter(pkcs11shim.Sign))},
	{"before the certificate is published: with the certificate in the journal",
		atWrite("status", false)},
	{"after the certificate is published: and nobody was told", atWrite("status", true)},
}

// hsm-signer is killed at each point between two steps of a sync.
func TestKilledAtEachPoint(t *testing.T) {
	r := begin(t, 2, "kill -9 at each point between two steps of a sync: "+
		"before and after the approval, the signature, the publication, 20 times each",
		"as above, and the bytes of an intent are the only ones that are ever signed again")
	p, through := shared.proxied(t)
	killAtPoints(t, r, p, shared.signer(t, through), shared.newBatch(t), points, of(1, 20))
}

func killAtPoints(t *testing.T, r *row, p *faultproxy.Proxy, s *signer, c *batch, points []point,
	times int) {
	t.Helper()
	for _, point := range points {
		for range times {
			d := s.startReady(t)
			c.waitForAll(t) // so that hsm-signer works on nothing else
			point.set(t, s, p, func() {
				if err := d.Kill(); err != nil {
					t.Error(err)
				}
			})
			_, err := c.askOne(t.Context())
			must.OK(t, err)
			waitForDeath(t, d, point.name)
			c.ask(t, 2) // while no hsm-signer runs
			p.Set(nil)
			must.OK(t, s.shim.Rules())
		}
	}
	d := s.startReady(t)
	c.waitForAll(t)
	must.OK(t, d.Shutdown())
	a := s.account(t)
	a.requireWhole(t, c)
	if a.orphans > 0 || a.again != times {
		t.Errorf("%d orphans; bytes of an intent were signed again %d times, and hsm-signer was "+
			"killed %d times "+
			"between the signature and the journal", a.orphans, a.again, times)
	}
	r.measured("%d kills at %d points, %d requests", times*len(points), len(points), c.size())
	r.measured("lost %d", c.size()-len(a.certificates))
	r.measured("most certificates for one UID %d", a.most())
	r.measuredSignatures(a)
	r.measured("orphans %d", a.orphans)
}

func waitForDeath(t *testing.T, d *testenv.Daemon, at string) {
	t.Helper()
	if code, err := d.Wait(); err != nil || code != -1 { // by a signal
		t.Fatalf("hsm-signer was not killed %s: exit code %d, %v", at, code, err)
	}
}

// proxied starts a proxy before the API server, which runs until the end of the test, and returns
// the environment with which hsm-signer uses it.
func (s *fixture) proxied(t *testing.T) (*faultproxy.Proxy, string) {
	t.Helper()
	p, err := faultproxy.NewProxy(s.Cluster.Config())
	must.OK(t, err)
	t.Cleanup(p.Close)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	must.OK(t, s.KubeconfigVia(t.Context(), kubeconfig, p.Config))
	return p, "KUBECONFIG=" + kubeconfig
}
