package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	exitPoll    = 20 * time.Millisecond
	exitTimeout = 10 * time.Second
	logTail     = 2000
)

// Spawn starts a command that the kernel kills when this process ends in any way, unless the
// command has SysProcAttr. The channel is closed once the command has exited and Wait has returned.
//
// A goroutine that is locked to its thread starts the command and waits for it. The kernel sends
// the death signal when the thread that started the child ends, not when the process ends, and the
// Go runtime may end any other thread.
func Spawn(cmd *exec.Cmd) (<-chan struct{}, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = dieWithParent()
	}
	started := make(chan error)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // the result is in ProcessState and in the log
		}
	}()
	return ended, <-started
}

// A process is a server of a cluster. The server holds the lock of its pid file, through an
// inherited descriptor, as long as it runs. So any program can find out reliably whether it runs
// and under which pid, even after the program that started it has exited.
type process struct {
	name string // also of its pid file and its log
	dir  string // its working directory

	// reaped is closed once the child has been waited for. It is nil if another program started the
	// server.
	reaped <-chan struct{}
}

func (p *process) pidFile() string { return filepath.Join(p.dir, p.name+".pid") }
func (p *process) logFile() string { return filepath.Join(p.dir, p.name+".log") }

// start starts the server. Unless detach is set, the server ends with ctx and with this process.
func (p *process) start(ctx context.Context, detach bool, binary string, args ...string) error {
	pidFile, err := lockFile(p.pidFile())
	if err != nil {
		return fmt.Errorf("%s may already run: %w", p.name, err)
	}
	defer pidFile.Close()
	log, err := os.OpenFile(p.logFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("log of %s: %w", p.name, err)
	}
	defer log.Close()
	if detach {
		ctx = context.WithoutCancel(ctx)
	}
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = p.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{pidFile}
	if detach {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	if p.reaped, err = Spawn(cmd); err != nil {
		return fmt.Errorf("start %s (%s): %w", p.name, binary, err)
	}
	if err = pidFile.Truncate(0); err == nil {
		_, err = pidFile.WriteString(strconv.Itoa(cmd.Process.Pid))
	}
	if err != nil {
		return fmt.Errorf("pid file of %s: %w", p.name, errors.Join(err, cmd.Process.Kill()))
	}
	return nil
}

// running reports whether the server runs.
func (p *process) running() bool {
	// A child that is forked while the file is open would hold the lock until it executes its
	// program.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	file, err := lockFile(p.pidFile())
	if err == nil {
		file.Close()
	}
	return errors.Is(err, syscall.EWOULDBLOCK)
}

// signal sends the server a signal. It returns an error if the server does not run.
func (p *process) signal(signal syscall.Signal) error {
	if !p.running() {
		return fmt.Errorf("%s is not running; its log is %s", p.name, p.logFile())
	}
	content, err := os.ReadFile(p.pidFile())
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(content))
	if err != nil {
		return fmt.Errorf("pid file %s: %w", p.pidFile(), err)
	}
	if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s to %s (pid %d): %w", signal, p.name, pid, err)
	}
	return nil
}

// kill kills the server, if it runs, and waits until it has exited. No data is lost: the API server
// has no state, and the kernel has everything that etcd has acknowledged.
func (p *process) kill() error {
	if !p.running() {
		return nil
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	err := wait.PollUntilContextTimeout(context.Background(), exitPoll, exitTimeout, true,
		func(context.Context) (bool, error) {
			return !p.running(), nil
		})
	if err != nil {
		return fmt.Errorf("%s did not exit within %s after SIGKILL: %w", p.name, exitTimeout, err)
	}
	if p.reaped != nil {
		<-p.reaped
	}
	return nil
}

// lastWords returns the end of the server's log.
func (p *process) lastWords() string { return Tail(p.logFile()) }

// Tail returns the end of a log, or why it cannot be read.
func Tail(file string) string {
	log, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(log[max(0, len(log)-logTail):]))
}
