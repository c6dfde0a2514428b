package tokens

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"hsm-signer/integration/testenv"
)

const (
	readyPoll    = 10 * time.Millisecond
	readyTimeout = 2 * time.Minute // on a busy machine a daemon takes its time
	stopTimeout  = time.Minute
)

// A daemon is a process that a token needs. It leads a process group, so that signals reach its
// children too.
type daemon struct {
	name  string
	args  []string // the command
	env   []string // besides this process's
	ready func(context.Context) bool
	// removes what a killed one leaves behind and the next one minds; nil: nothing
	clean func() error

	log   string
	cmd   *exec.Cmd
	ended <-chan struct{}
}

// start starts the daemon unless it runs, and waits until it is ready.
func (d *daemon) start(ctx context.Context) error {
	if d.runs() {
		return nil
	}
	if d.clean != nil {
		if err := d.clean(); err != nil {
			return fmt.Errorf("clean up after %s: %w", d.name, err)
		}
	}
	log, err := os.OpenFile(d.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd = exec.Command(d.args[0], d.args[1:]...)
	d.cmd.Env = append(os.Environ(), d.env...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if d.ended, err = testenv.Spawn(d.cmd); err != nil {
		return fmt.Errorf("start %s: %w; run `make setup`", d.name, err)
	}
	err = wait.PollUntilContextTimeout(ctx, readyPoll, readyTimeout, true,
		func(ctx context.Context) (bool, error) {
			if !d.runs() {
				return false, errors.New("it has exited")
			}
			return d.ready(ctx), nil
		})
	if err != nil {
		return errors.Join(fmt.Errorf("%s is not ready: %w: %s", d.name, err, testenv.Tail(d.log)),
			d.kill())
	}
	return nil
}

func (d *daemon) runs() bool {
	if d.ended == nil {
		return false
	}
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

// signal sends a signal to the daemon and its children.
func (d *daemon) signal(signal syscall.Signal) error {
	if !d.runs() {
		return fmt.Errorf("%s does not run", d.name)
	}
	if err := syscall.Kill(-d.cmd.Process.Pid, signal); err != nil &&
		!errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s to %s: %w", signal, d.name, err)
	}
	return nil
}

func (d *daemon) pause() error   { return d.signal(syscall.SIGSTOP) }
func (d *daemon) proceed() error { return d.signal(syscall.SIGCONT) }

func (d *daemon) kill() error {
	if !d.runs() {
		return nil
	}
	err := d.signal(syscall.SIGKILL)
	<-d.ended
	return err
}

// stop terminates the daemon, and kills it if it does not exit.
func (d *daemon) stop() error {
	if !d.runs() {
		return nil
	}
	err := errors.Join(d.proceed(), d.signal(syscall.SIGTERM))
	select {
	case <-d.ended:
	case <-time.After(stopTimeout):
		err = errors.Join(err,
			fmt.Errorf("%s did not exit within %s: %s", d.name, stopTimeout,
				testenv.Tail(d.log)), d.kill())
	}
	return err
}

// command runs a command with more variables than this process has.
func command(ctx context.Context, env []string, name string, args ...string) error {
	_, err := testenv.Output(ctx, "", env, name, args...)
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w; run `make setup`", err)
	}
	return err
}

// listens returns a function that reports whether some process listens on all of these sockets. It
// reads the kernel's table: some daemons fail when a connection closes without a request.
func listens(sockets ...string) func(context.Context) bool {
	return func(context.Context) bool {
		table, err := os.ReadFile("/proc/net/unix")
		if err != nil {
			return false
		}
		// unix(7), include/uapi/linux/net.h: __SO_ACCEPTCON
		const flags, path, accepts = 3, 7, "00010000"
		open := 0
		for line := range strings.Lines(string(table)) {
			if words := strings.Fields(line); len(words) > path && words[flags] == accepts &&
				slices.Contains(sockets, words[path]) {
				open++
			}
		}
		return open >= len(sockets)
	}
}

// program finds a program, also in the directories of root.
func program(name string) string {
	if _, err := exec.LookPath(name); err != nil {
		return "/usr/sbin/" + name
	}
	return name
}
