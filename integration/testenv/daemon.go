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
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	poll     = 20 * time.Millisecond
	patience = 30 * time.Second
	ending   = 2 * time.Minute // a module that hangs is given more than a minute
)

// A Daemon is "hsm-signer run", or "hsm-signer heal", as a process.
type Daemon struct {
	cmd     *exec.Cmd
	log     log
	address string // of its health endpoints
	ended   <-chan struct{}
}

// Run starts hsm-signer and waits until it listens; see [Daemon.WaitReady]. The
// environment is added to the one that is right.
func (e *Env) Run(ctx context.Context, ca CA, env ...string) (*Daemon, error) {
	return e.start(ctx, "run", e.environment(ca, env))
}

// start starts a command of hsm-signer that serves, and waits until it listens.
func (e *Env) start(ctx context.Context, command string, env []string) (*Daemon, error) {
	d := &Daemon{cmd: exec.CommandContext(ctx, e.binary, command)}
	d.cmd.Env = env
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(os.Interrupt) }
	d.cmd.WaitDelay = patience
	var err error
	if d.ended, err = Spawn(d.cmd); err != nil {
		return nil, fmt.Errorf("start hsm-signer: %w", err)
	}
	if err := d.findAddress(ctx); err != nil {
		return nil, errors.Join(err, d.Kill())
	}
	return d, nil
}

// findAddress waits for the log line that says where it listens.
func (d *Daemon) findAddress(ctx context.Context) (err error) {
	d.address, err = d.logged(ctx, "listening")
	return err
}

// StatusPage waits until the status page is listened on, and returns its URL.
func (d *Daemon) StatusPage(ctx context.Context) (string, error) {
	address, err := d.logged(ctx, "the status page is there")
	return "http://" + address + "/", err
}

// logged waits for the log line that has this message and an address, and returns that.
func (d *Daemon) logged(ctx context.Context, message string) (address string, err error) {
	err = wait.PollUntilContextTimeout(ctx, poll, patience, true, func(context.Context) (bool, error) {
		if !d.Running() {
			return false, errors.New("it has ended")
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

// Running tells whether the process lives.
func (d *Daemon) Running() bool {
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

// Readyz returns what /readyz answers.
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

// Metrics returns what /metrics says, or why it does not.
func (d *Daemon) Metrics(ctx context.Context) string {
	_, body, err := d.get(ctx, "/metrics")
	if err != nil {
		return err.Error()
	}
	return body
}

// WaitReady waits until /readyz says that all is well.
func (d *Daemon) WaitReady(ctx context.Context) error { return d.waitReadyz(ctx, true, "") }

// WaitNotReady waits until /readyz says that it is not ready, with these words.
func (d *Daemon) WaitNotReady(ctx context.Context, words string) error {
	return d.waitReadyz(ctx, false, words)
}

func (d *Daemon) waitReadyz(ctx context.Context, want bool, words string) error {
	var last string
	err := wait.PollUntilContextTimeout(ctx, poll, patience, true, func(ctx context.Context) (bool, error) {
		if !d.Running() {
			return false, errors.New("it has ended")
		}
		ready, body, err := d.Readyz(ctx)
		last = body
		return err == nil && ready == want && strings.Contains(body, words), nil
	})
	if err != nil {
		return fmt.Errorf("/readyz of hsm-signer is not ready=%t %q: %w; it says %q; its log:\n%s", want, words, err, last, d.Log())
	}
	return nil
}

// Stop asks the process to end, as a supervisor does, and returns its exit code.
func (d *Daemon) Stop() (int, error) {
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return -1, err
	}
	return d.Wait()
}

// Kill ends the process without asking.
func (d *Daemon) Kill() error {
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-d.ended
	return nil
}

// Wait waits for the end of the process and returns its exit code.
func (d *Daemon) Wait() (int, error) {
	select {
	case <-d.ended:
		return d.cmd.ProcessState.ExitCode(), nil
	case <-time.After(ending):
		return -1, errors.Join(fmt.Errorf("hsm-signer did not end within %s; its log:\n%s", ending, d.Log()), d.Kill())
	}
}

// DumpedCore tells whether the process ended and left a core behind.
func (d *Daemon) DumpedCore() bool {
	status, ok := d.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.CoreDump()
}

// Signal sends a signal to the process.
func (d *Daemon) Signal(signal os.Signal) error { return d.cmd.Process.Signal(signal) }

// PID is the process's.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Address is where the health endpoints listen, HOST:PORT.
func (d *Daemon) Address() string { return d.address }

// Log is what the process has written so far.
func (d *Daemon) Log() string { return d.log.String() }

// log keeps what a process writes.
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
