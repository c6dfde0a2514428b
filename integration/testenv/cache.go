package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	lockPollInterval = 200 * time.Millisecond
	buildEnvironment = "GOWORK=off" // only this module's go.mod chooses the versions
)

// Cached returns a directory in the user's cache that has these files. The name says all that they
// depend on. If one is missing, build makes all of them in an empty directory; of several processes
// one builds and the others wait. progress, if not nil, receives lines about what is being done.
func Cached(ctx context.Context, name string, files []string, progress io.Writer, what string,
	build func(dir string) error) (dir string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache directory for %s: %w; set HOME", name, err)
	}
	dir = filepath.Join(cache, "hsm-signer", name)
	if missing(dir, files) == nil {
		return dir, nil
	}
	defer ticker(progress, what)()
	if err := install(ctx, dir, files, build); err != nil {
		return "", fmt.Errorf("%s, in %s: %w", what, dir, err)
	}
	return dir, nil
}

// missing returns an error if the directory lacks a file.
func missing(dir string, files []string) error {
	for _, name := range files {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// install has build make the directory under a lock, unless another process has made it.
func install(ctx context.Context, dir string, files []string, build func(string) error) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	lock, err := Lock(ctx, dir+".lock")
	if err != nil {
		return err
	}
	defer lock.Close()
	if missing(dir, files) == nil {
		return nil // another process has made it
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), "building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	if err := build(temp); err != nil {
		return err
	}
	return errors.Join(os.Chmod(temp, 0o755), os.RemoveAll(dir), os.Rename(temp, dir))
}

// goOutput runs the go command, which ends with ctx, and returns its output.
func goOutput(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	out, err := Output(ctx, dir, append([]string{buildEnvironment}, env...), "go", args...)
	return strings.TrimSpace(out), err
}

// Output runs a command in a directory, with more variables than this process has, and returns what
// it prints to standard output. The command ends with ctx. The error has all that it printed.
func Output(ctx context.Context, dir string, env []string, name string, args ...string) (string,
	error) {
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	err := cmd.Run()
	if ctx.Err() != nil {
		return "", fmt.Errorf("%s: %w", cmd, context.Cause(ctx))
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s%s", cmd, err, &stdout, &stderr)
	}
	return stdout.String(), err
}

// lockFile opens the file and locks it until every copy of the descriptor is closed, also in child
// processes. It does not wait: if another process has the lock, the error is syscall.EWOULDBLOCK.
func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return file, nil
}

// Lock waits until no other process has locked the file, and locks it until the file is closed.
func Lock(ctx context.Context, path string) (lock *os.File, err error) {
	err = wait.PollUntilContextCancel(ctx, lockPollInterval, true,
		func(context.Context) (_ bool, err error) {
			lock, err = lockFile(path)
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return false, nil
			}
			return err == nil, err
		})
	if err != nil {
		return nil, fmt.Errorf("wait for another process with the lock %s: %w", path, err)
	}
	return lock, nil
}
