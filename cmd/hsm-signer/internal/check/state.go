package check

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/trustedfile"
	"hsm-signer/issuer/journal"
)

// checkState reports whether STATE_DIR can hold the journal, or a shadow's log. It changes nothing.
func checkState(c *config.Config, report reporter) {
	dir, user := c.StateDir, c.StateUser()
	info, err := os.Stat(dir)
	detail := dir
	switch {
	case errors.Is(err, fs.ErrNotExist):
		detail, err = dir+", which does not exist and is created at start", canMake(dir)
	case err == nil:
		err = unix.Access(dir, unix.R_OK|unix.W_OK|unix.X_OK)
		if mode := info.Mode().Perm(); err == nil && user != os.Geteuid() {
			detail += fmt.Sprintf("; only its owner, user %d, can run hsm-signer with it", user)
		} else if err == nil && mode&0o002 != 0 && trustedfile.OwnerOf(info) != user {
			err = fmt.Errorf("everyone may write to it (mode %04o): chmod o-w it", mode)
		}
	}
	if err != nil {
		err = fmt.Errorf("STATE_DIR %s: %w; name a directory that hsm-signer may write", dir, err)
	} else if journal.Locked(dir) {
		detail += "; a running process has the journal open"
	}
	report("state directory", detail, err)
}

// canMake returns nil if this user may make the directory.
func canMake(dir string) error {
	for {
		dir = filepath.Dir(dir)
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

// checkFiles reports the files that are accepted with a warning.
func checkFiles(c *config.Config, report reporter) {
	for _, text := range c.Warnings {
		report("files", text, errWarning)
	}
}
