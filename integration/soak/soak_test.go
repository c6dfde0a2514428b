// Package soak holds hsm-signer out into bad weather: it is killed, cut off, stopped and filled up while requests
// come in, and afterwards all is counted. Nothing may be lost, nothing issued twice, and nothing signed that is not
// in the journal.
//
// Each row of the report is a test, with the real API server and etcd, and SoftHSM behind a shim that
// writes down what is signed. "go test" runs each in a short form; with SOAK=full (make soak) the numbers are those
// of the report, which is then written: results.json, and report.md for people. The deadlines of the report are
// measured, and what does not come at all ends the test long after them.
package soak

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/testenv"
)

// full tells whether the numbers are those of the report.
var full = os.Getenv("SOAK") == "full"

// of chooses a number by the form.
func of[T any](short, inFull T) T {
	if full {
		return inFull
	}
	return short
}

// The parts that most tests share: those that would leave the cluster large, or set it back, have one of their own.
var shared *stage

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx := context.Background()
	var err error
	if shared, err = newStage(ctx, ""); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer shared.close()
	return m.Run()
}

// A stage is a cluster, and a token with a CA's key.
type stage struct {
	*testenv.Env
	ca  testenv.CA
	dir string
}

func newStage(ctx context.Context, binary string) (*stage, error) {
	dir, err := os.MkdirTemp("", "hsm-signer-soak-")
	if err != nil {
		return nil, err
	}
	b, err := testenv.New(ctx, testenv.Options{Dir: dir, Binary: binary, Progress: os.Stderr})
	if err != nil {
		return nil, err
	}
	s := &stage{Env: b, dir: dir}
	if s.ca, _, err = b.CreateCA(ctx, "ecdsa-p256"); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stage) close() {
	if err := s.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	_ = os.RemoveAll(s.dir) // it is in the directory for temporary files
}

// ownStage is one for this test alone.
func ownStage(t *testing.T) *stage {
	t.Helper()
	s, err := newStage(context.WithoutCancel(t.Context()), shared.Binary())
	must.OK(t, err)
	t.Cleanup(s.close)
	return s
}

// A signer is hsm-signer with a journal of its own, behind a shim, with room in its budget. It is run any number of
// times.
type signer struct {
	*stage
	shim  *pkcs11shim.Shim
	state string
	env   []string
}

func (s *stage) signer(t *testing.T, env ...string) *signer {
	t.Helper()
	dir := t.TempDir()
	before, err := pkcs11shim.New(t.Context(), dir, s.Token.Module)
	must.OK(t, err)
	text, stderr, code := s.Command(t.Context(), s.ca, nil, "policy", "show", "calico")
	if code != 0 {
		t.Fatalf("policy show: exit code %d: %s", code, stderr)
	}
	policy := filepath.Join(dir, "policy.yaml")
	must.OK(t, os.WriteFile(policy, []byte(text+"\nbudget: {total: 1000000, perServiceAccount: 100%, perPod: 1000000}\n"), 0o600))
	made := &signer{stage: s, shim: before, state: filepath.Join(dir, "state")}
	made.env = append(before.Env(), "PKCS11_MODULE="+before.Module, "POLICY_FILE="+policy, "STATE_DIR="+made.state)
	made.env = append(made.env, env...)
	return made
}

// start runs it until the end of the test at most, however that comes.
func (s *signer) start(t *testing.T) *testenv.Daemon {
	t.Helper()
	d, err := s.Run(context.WithoutCancel(t.Context()), s.ca, s.env...)
	must.OK(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of hsm-signer %d ends:\n%s", d.PID(), tail(d.Log()))
		}
		_ = d.Kill() // mostly it has ended
	})
	return d
}

func (s *signer) startReady(t *testing.T) *testenv.Daemon {
	t.Helper()
	d := s.start(t)
	must.OK(t, d.WaitReady(t.Context()))
	return d
}

// stop ends it as a supervisor does.
func stop(t *testing.T, d *testenv.Daemon) {
	t.Helper()
	if code, err := d.Stop(); err != nil || code != 0 {
		t.Errorf("hsm-signer ended with code %d, %v", code, err)
	}
}

// tail is the end of a long text.
func tail(text string) string { return text[max(0, len(text)-1500):] }

// node is the component that most requests are of.
func node() calico.Component { return calico.OpenSource("cluster.local")[0] }

// patience ends the wait for what does not come: long after any deadline of the report.
const patience = 5 * time.Minute

// goesOn lets time pass in which things happen, or until the test ends.
func goesOn(t *testing.T, d time.Duration) {
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
