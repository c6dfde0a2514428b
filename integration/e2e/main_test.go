package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// All tests share these. Each test runs its own hsm-signer, one at a time.
var (
	shared *testenv.Env
	ca     testenv.CA
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hsm-signer-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	if shared, err = testenv.New(ctx, testenv.Options{Dir: dir, Progress: os.Stderr}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer shared.Close()
	if ca, _, err = shared.CreateCA(ctx, "ecdsa-p256"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// numbers makes names unique.
var numbers atomic.Uint32

// start runs hsm-signer until the end of the test. Unless the test kills it, it must exit with 0.
func start(t *testing.T, ca testenv.CA, env ...string) *testenv.Daemon {
	t.Helper()
	d := must.Get(shared.Run(context.WithoutCancel(t.Context()), ca, env...))(t)
	t.Cleanup(func() { must.OK(t, d.Shutdown()) })
	return d
}

func startReady(t *testing.T, ca testenv.CA, env ...string) *testenv.Daemon {
	t.Helper()
	d := start(t, ca, env...)
	must.OK(t, d.WaitReady(t.Context()))
	return d
}

// startHealer runs "hsm-signer heal" until the end of the test.
func startHealer(t *testing.T, env ...string) *testenv.Daemon {
	t.Helper()
	d := must.Get(shared.Heal(context.WithoutCancel(t.Context()), env...))(t)
	t.Cleanup(func() { must.OK(t, d.Shutdown()) })
	return d
}

func waitLog(t *testing.T, d *testenv.Daemon, words string) {
	t.Helper()
	must.Eventually(t, "the log to say "+words, func(context.Context) (bool, error) {
		return strings.Contains(d.Log(), words), nil
	})
}

// waitMetrics waits until the metrics have all of these words.
func waitMetrics(t *testing.T, d *testenv.Daemon, words ...string) {
	t.Helper()
	for _, want := range words {
		must.Eventually(t, "the metrics to show "+want, func(ctx context.Context) (bool, error) {
			return strings.Contains(d.Metrics(ctx), want), nil
		})
	}
}

func requireNoFaults(t *testing.T, d *testenv.Daemon) {
	t.Helper()
	if log := d.Log(); strings.Contains(log, `"@level":"error"`) {
		t.Errorf("there were faults:\n%s", log)
	}
}

// requireNeverNamed requires that the log names no other kind of request than those that were made.
func requireNeverNamed(t *testing.T, d *testenv.Daemon, kind string) {
	t.Helper()
	for line := range strings.Lines(d.Log()) {
		if strings.Contains(strings.ToLower(line), kind) {
			t.Errorf("the log names a %s: %s", kind, line)
		}
	}
}

// removeToken makes the token unavailable until the caller calls back, or the test ends.
func removeToken(t *testing.T) (back func()) {
	t.Helper()
	must.OK(t, shared.Token.MoveAway())
	back = sync.OnceFunc(func() { must.OK(t, shared.Token.MoveBack()) })
	t.Cleanup(back)
	return back
}

// tempFile writes a file that its owner alone may read, and returns its path.
func tempFile(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	must.OK(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

// withPolicy returns the setting for a policy with this text.
func withPolicy(t *testing.T, text string) string {
	t.Helper()
	return "POLICY_FILE=" + tempFile(t, "policy.yaml", text)
}

// withBudget returns the setting for Calico's policy with another budget.
func withBudget(t *testing.T, budget string) string {
	t.Helper()
	return must.Get(shared.WithBudget(t.Context(), ca, "calico", budget))(t)
}
