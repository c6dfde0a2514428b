package tokens

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	claimPoll    = 100 * time.Millisecond
	claimTimeout = 10 * time.Minute
)

// claim waits until no other test on this machine uses the named resource, and reserves it until
// the token is closed.
func (t *Token) claim(ctx context.Context, name string) error {
	path := filepath.Join(os.TempDir(), "hsm-signer-"+name+".lock")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = wait.PollUntilContextTimeout(ctx, claimPoll, claimTimeout, true,
		func(context.Context) (bool, error) {
			err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return false, nil
			}
			return err == nil, err
		})
	if err != nil {
		return errors.Join(fmt.Errorf("another test has %s (lock %s): %w", name, path, err),
			file.Close())
	}
	t.undo = append(t.undo, file.Close)
	return nil
}

// replace replaces a file or directory of the system until the token is closed. The original waits
// under another name. If this process dies, the next token restores it.
func (t *Token) replace(path string, put func() error) error {
	saved, nothing := path+".hsm-signer-saved", path+".hsm-signer-nothing"
	restore := func() error {
		if !isThere(saved) && !isThere(nothing) {
			return nil // nothing was replaced
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if isThere(saved) {
			return os.Rename(saved, path)
		}
		return os.Remove(nothing)
	}
	if err := restore(); err != nil {
		return err
	}
	t.undo = append(t.undo, restore)
	if isThere(path) {
		if err := os.Rename(path, saved); err != nil {
			return err
		}
	} else if err := os.WriteFile(nothing, nil, 0o600); err != nil {
		return err
	}
	return put()
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
