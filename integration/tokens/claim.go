package tokens

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"hsm-signer/integration/testenv"
)

const claimTimeout = 10 * time.Minute

// claim waits until no other test on this machine uses the named resource, and reserves it until
// the token is closed.
func (t *Token) claim(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	file, err := testenv.Lock(ctx, filepath.Join(os.TempDir(), "hsm-signer-"+name+".lock"))
	if err != nil {
		return fmt.Errorf("another test has %s: %w", name, err)
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
