package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	poll     = 20 * time.Millisecond
	patience = 30 * time.Second
	ending   = 2 * time.Minute // hsm-signer waits more than a minute for a hanging module
)

// A Daemon is "hsm-signer run", or "hsm-signer heal", as a process.
type Daemon struct {
	cmd     *exec.Cmd
	log     log
	address string // of its health endpoints
	ended   <-chan struct{}
	killed  atomic.Bool
}

// Run starts hsm-signer and waits until it listens; see [Daemon.WaitReady]. Variables in env have
// precedence.
func (e *Env) Run(ctx context.Context, ca CA, env ...string) (*Daemon, error) {
	return e.start(ctx, []string{"run"}, e.environment(ca, env))
}

// healer is the service account of deploy/components/heal.
const healer = "hsm-signer-heal"

// Heal starts "hsm-signer heal" with the rights of deploy/components/heal, and waits until it
// listens. Variables in env have precedence.
func (e *Env) Heal(ctx context.Context, env ...string) (*Daemon, error) {
	return e.heal(ctx, []string{"heal"}, env)
}

// HealOf is [Env.Heal] for a CA of CONFIG_FILE, which env names.
func (e *Env) HealOf(ctx context.Context, ca string, env ...string) (*Daemon, error) {
	return e.heal(ctx, []string{"heal", "--ca", ca}, env)
}

func (e *Env) heal(ctx context.Context, command, env []string) (*Daemon, error) {
	if err := e.Cluster.EnsureNamespace(ctx, "calico-system"); err != nil {
		return nil, err
	}
	if err := e.apply(ctx, "components/heal/rbac.yaml"); err != nil {
		return nil, err
	}
	kubeconfig := filepath.Join(e.dir, healer+".kubeconfig")
	if err := e.kubeconfigOf(ctx, healer, kubeconfig, e.Cluster.ConfigFor); err != nil {
		return nil, err
	}
	own := append(os.Environ(), "SIGNER_NAME="+SignerName, "KUBECONFIG="+kubeconfig,
		"LISTEN_ADDRESS=127.0.0.1:0", "LOG_FORMAT=json")
	return e.start(ctx, command, append(own, env...))
}

// AllowPods gives hsm-signer the rights of deploy/components/pod-certificates.
func (e *Env) AllowPods(ctx context.Context) error {
	return e.apply(ctx, "components/pod-certificates/role.yaml")
}

// ForPods gives hsm-signer the rights for pod certificates, and returns its settings for them, with
// the built-in policy and a budget that no test exhausts.
func (e *Env) ForPods(ctx context.Context, ca CA) (env []string, err error) {
	if err := e.AllowPods(ctx); err != nil {
		return nil, err
	}
	policy, err := e.WithBudget(ctx, ca, "pods", LargeBudget)
	return []string{policy, "POD_CERTIFICATES=true", "TRUST_DOMAIN=example.org"}, err
}

// start starts a serving command of hsm-signer, and waits until it listens.
func (e *Env) start(ctx context.Context, command, env []string) (*Daemon, error) {
	d := &Daemon{cmd: exec.CommandContext(ctx, e.binary, command...)}
	d.cmd.Env = env
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(os.Interrupt) }
	d.cmd.WaitDelay = patience
	var err error
	if d.ended, err = Spawn(d.cmd); err != nil {
		return nil, fmt.Errorf("start hsm-signer: %w", err)
	}
	if d.address, err = d.logged(ctx, "listening"); err != nil {
		return nil, errors.Join(err, d.Kill())
	}
	return d, nil
}

// StatusPage waits until the status page is served, and returns its URL.
func (d *Daemon) StatusPage(ctx context.Context) (string, error) {
	address, err := d.logged(ctx, "the status page is there")
	return "http://" + address + "/", err
}

// logged waits for the log line with this message, and returns the address in it.
func (d *Daemon) logged(ctx context.Context, message string) (address string, err error) {
	err = wait.PollUntilContextTimeout(ctx, poll, patience, true,
		func(context.Context) (bool, error) {
			if !d.Running() {
				return false, errors.New("it has exited")
			}
			for line := range strings.SplitSeq(d.log.String(), "\n") {
				var entry struct {
					Message string `json:"@message"`
					Address string `json:"address"`
				}
				if json.Unmarshal([]byte(line), &entry) == nil && entry.Message == message {
					address = entry.Address
				}
			}
			return address != "", nil
		})
	if err != nil {
		return "", fmt.Errorf("hsm-signer does not log %q: %w; its log:\n%s", message, err, d.Log())
	}
	return address, nil
}

// Running reports whether the process runs.
func (d *Daemon) Running() bool {
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

// Readyz returns the answer of /readyz.
func (d *Daemon) Readyz(ctx context.Context) (ready bool, body string, err error) {
	return d.get(ctx, "/readyz")
}

func (d *Daemon) get(ctx context.Context, path string) (ok bool, body string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.address+path, nil)
	if err != nil {
		return false, "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode == http.StatusOK, string(text), err
}

// Metrics returns the text of /metrics, or the error of the call.
func (d *Daemon) Metrics(ctx context.Context) string {
	_, body, err := d.get(ctx, "/metrics")
	if err != nil {
		return err.Error()
	}
	return body
}

// WaitReady waits until /readyz reports that hsm-signer is ready.
func (d *Daemon) WaitReady(ctx context.Context) error { return d.waitReadyz(ctx, true, "") }

// WaitNotReady waits until /readyz reports that hsm-signer is not ready, with these words.
func (d *Daemon) WaitNotReady(ctx context.Context, words string) error {
	return d.waitReadyz(ctx, false, words)
}

func (d *Daemon) waitReadyz(ctx context.Context, want bool, words string) error {
	var last string
	err := wait.PollUntilContextTimeout(ctx, poll, patience, true,
		func(ctx context.Context) (bool, error) {
			if !d.Running() {
				return false, errors.New("it has exited")
			}
			ready, body, err := d.Readyz(ctx)
			last = body
			return err == nil && ready == want && strings.Contains(body, words), nil
		})
	if err != nil {
		return fmt.Errorf("waiting for ready=%t %q in /readyz of hsm-signer: %w; last answer %q; "+
			"its log:\n%s", want, words, err, last, d.Log())
	}
	return nil
}

// Leads reports whether the process has the lease, according to /readyz.
func (d *Daemon) Leads(ctx context.Context) bool {
	_, body, err := d.Readyz(ctx)
	return err == nil && strings.Contains(body, "leads true")
}

// leadsAs finds the identity of a leader in its log.
var leadsAs = regexp.MustCompile(`"@message":"this controller leads".*"identity":"([^"]+)"`)

// Identities returns the identities with which the process has led, according to its log.
func (d *Daemon) Identities() (all []string) {
	for _, found := range leadsAs.FindAllStringSubmatch(d.Log(), -1) {
		all = append(all, found[1])
	}
	return all
}

// Stop interrupts the process, as a supervisor does, and returns its exit code.
func (d *Daemon) Stop() (int, error) {
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return -1, err
	}
	return d.Wait()
}

// Shutdown stops the process, and returns an error with the end of its log unless it exits with 0
// or was killed before.
func (d *Daemon) Shutdown() error {
	if code, err := d.Stop(); (err != nil || code != 0) && !d.killed.Load() {
		const tail = 4000
		log := d.Log()
		return fmt.Errorf("hsm-signer exited with code %d, %v; the end of its log:\n%s",
			code, err, log[max(0, len(log)-tail):])
	}
	return nil
}

// Kill kills the process.
func (d *Daemon) Kill() error {
	d.killed.Store(true)
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-d.ended
	return nil
}

// Wait waits until the process exits, and returns its exit code.
func (d *Daemon) Wait() (int, error) {
	select {
	case <-d.ended:
		return d.cmd.ProcessState.ExitCode(), nil
	case <-time.After(ending):
		return -1, errors.Join(fmt.Errorf("hsm-signer did not exit within %s; its log:\n%s", ending,
			d.Log()), d.Kill())
	}
}

// DumpedCore reports whether the process has written a core dump.
func (d *Daemon) DumpedCore() bool {
	status, ok := d.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.CoreDump()
}

// Signal sends a signal to the process.
func (d *Daemon) Signal(signal os.Signal) error { return d.cmd.Process.Signal(signal) }

// PID returns the process ID.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Address returns the HOST:PORT of the health endpoints.
func (d *Daemon) Address() string { return d.address }

// Log returns the output of the process so far.
func (d *Daemon) Log() string { return d.log.String() }

// log keeps the output of a process.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
