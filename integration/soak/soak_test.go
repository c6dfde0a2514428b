// Package soak tests hsm-signer under faults: it is killed, cut off, stopped and its disk is filled
// while requests arrive. Afterwards each test counts signatures, journal lines and certificates.
// Nothing may be lost, nothing issued twice, and nothing signed that is not in the journal.
//
// Each row of the report is a test with a real API server and etcd, and SoftHSM behind a shim that
// logs every signature. "go test" runs each test in a short form. With SOAK=full (make soak) the
// tests use the numbers of the report and write it: results.json, and report.md for people. The
// deadlines in the report are measured, not asserted.
package soak

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/testenv"
)

// full reports whether the tests use the numbers of the report.
var full = os.Getenv("SOAK") == "full"

// of returns the number for the short or the full form.
func of[T any](short, inFull T) T {
	if full {
		return inFull
	}
	return short
}

// shared is the fixture of most tests. Tests that fill or restore the cluster have one of their
// own.
var shared *fixture

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx := context.Background()
	var err error
	if shared, err = newFixture(ctx, ""); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer shared.close()
	return m.Run()
}

// A fixture is a cluster, and a token with a CA key.
type fixture struct {
	*testenv.Env
	ca  testenv.CA
	dir string
}

func newFixture(ctx context.Context, binary string) (*fixture, error) {
	dir, err := os.MkdirTemp("", "hsm-signer-soak-")
	if err != nil {
		return nil, err
	}
	env, err := testenv.New(ctx, testenv.Options{Dir: dir, Binary: binary, Progress: os.Stderr})
	if err != nil {
		return nil, err
	}
	s := &fixture{Env: env, dir: dir}
	if s.ca, _, err = env.CreateCA(ctx, "ecdsa-p256"); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *fixture) close() {
	if err := s.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	_ = os.RemoveAll(s.dir) // in the directory for temporary files
}

// ownFixture returns a fixture for this test alone.
func ownFixture(t *testing.T) *fixture {
	t.Helper()
	s, err := newFixture(context.WithoutCancel(t.Context()), shared.Binary())
	must.OK(t, err)
	t.Cleanup(s.close)
	return s
}

// A signer is an hsm-signer with its own journal, a shim before the token, and a large budget. A
// test may run it several times.
type signer struct {
	*fixture
	shim  *pkcs11shim.Shim
	state string
	env   []string
}

func (s *fixture) signer(t *testing.T, env ...string) *signer {
	t.Helper()
	dir := t.TempDir()
	before, err := pkcs11shim.New(t.Context(), dir, s.Token.Module)
	must.OK(t, err)
	policy, err := s.WithBudget(t.Context(), s.ca, "calico", testenv.LargeBudget)
	must.OK(t, err)
	made := &signer{fixture: s, shim: before, state: filepath.Join(dir, "state")}
	made.env = slices.Concat(before.Env(), []string{policy, "STATE_DIR=" + made.state}, env)
	return made
}

// start runs the signer. It ends with the test at the latest.
func (s *signer) start(t *testing.T) *testenv.Daemon {
	t.Helper()
	d, err := s.Run(context.WithoutCancel(t.Context()), s.ca, s.env...)
	must.OK(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of hsm-signer %d ends:\n%s", d.PID(), tail(d.Log()))
		}
		_ = d.Kill() // in most tests it has ended
	})
	return d
}

func (s *signer) startReady(t *testing.T) *testenv.Daemon {
	t.Helper()
	d := s.start(t)
	must.OK(t, d.WaitReady(t.Context()))
	return d
}

// tail returns the end of a long text.
func tail(text string) string { return text[max(0, len(text)-1500):] }

// node is the component that makes most requests.
func node() calico.Component { return calico.OpenSource("cluster.local")[0] }

// patience limits waits that only a broken hsm-signer does not end.
const patience = 5 * time.Minute

// hold keeps a fault in place for as long as the row of the report says. The short form does not
// wait: there the visible effect of the fault is enough.
func hold(t *testing.T, d time.Duration) {
	t.Helper()
	if !full {
		return
	}
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
