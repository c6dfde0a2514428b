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

// Spawn starts a command that the kernel kills when this process ends, however that
// ends, unless the command has attributes of its own. The channel is closed when the
// command has ended and was waited for.
//
// It starts on a thread that does nothing else and lives as long as the
// command: the kernel sends a child its death signal when the thread that
// started it ends, not when the process does, and the Go runtime ends threads
// as it pleases unless a goroutine is locked to them.
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
			_ = cmd.Wait() // how it ended is in its ProcessState and in its log
		}
	}()
	return ended, <-started
}

// process is one server of a cluster. Its pid file is locked by the server
// itself, through a descriptor that it inherits, for as long as it lives: so
// whether it runs, and under which pid, can be told without error by any
// program, also after the one that started it has died.
type process struct {
	name string // of its pid file and its log too
	dir  string // its working directory

	// reaped is closed when the child has been waited for. It is nil for a
	// server that another program started.
	reaped <-chan struct{}
}

func (p *process) pidFile() string { return filepath.Join(p.dir, p.name+".pid") }
func (p *process) logFile() string { return filepath.Join(p.dir, p.name+".log") }

// start starts the server. When detach is false it dies with ctx, and with the
// process that started it.
func (p *process) start(ctx context.Context, detach bool, binary string, args ...string) error {
	pidFile, err := lockFile(p.pidFile())
	if err != nil {
		return fmt.Errorf("%s may run already: %w", p.name, err)
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
	if err := errors.Join(pidFile.Truncate(0), writeAt(pidFile, strconv.Itoa(cmd.Process.Pid))); err != nil {
		return fmt.Errorf("pid file of %s: %w", p.name, errors.Join(err, cmd.Process.Kill()))
	}
	return nil
}

// running tells whether the server lives.
func (p *process) running() bool {
	// A child forked while the file is open here would hold the lock until it
	// has begun its own program.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	file, err := lockFile(p.pidFile())
	if err == nil {
		file.Close()
	}
	return errors.Is(err, syscall.EWOULDBLOCK)
}

// signal sends the server a signal. It is an error if it does not run.
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

// kill ends the server, if it runs, and waits for its end. It kills without
// asking: the API server keeps no state, and what etcd has acknowledged is with
// the kernel already.
func (p *process) kill() error {
	if !p.running() {
		return nil
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	err := wait.PollUntilContextTimeout(context.Background(), exitPoll, exitTimeout, true, func(context.Context) (bool, error) {
		return !p.running(), nil
	})
	if err != nil {
		return fmt.Errorf("%s did not end within %s of being killed: %w", p.name, exitTimeout, err)
	}
	if p.reaped != nil {
		<-p.reaped
	}
	return nil
}

// lastWords is the end of the server's log.
func (p *process) lastWords() string {
	log, err := os.ReadFile(p.logFile())
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(log[max(0, len(log)-logTail):]))
}

func writeAt(file *os.File, text string) error {
	_, err := file.WriteAt([]byte(text), 0)
	return err
}
