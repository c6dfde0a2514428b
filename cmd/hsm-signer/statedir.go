package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hsm-signer/cmd/hsm-signer/internal/trustedfile"
	"hsm-signer/issuer/journal"
)

// resolveStateDir replaces STATE_DIR by the directory that it leads to, once: systemd's DynamicUser
// makes it a symbolic link. Only root and this user may be able to put another in its place.
func (c *config) resolveStateDir(faults *configFaults) {
	real, err := trustedfile.ResolveDir(c.stateDir, c.stateUser())
	if err != nil {
		faults.add("STATE_DIR", err)
		return
	}
	c.stateDir = real
}

// stateUser returns the user who must own STATE_DIR: this one. Root may check it for its owner.
func (c *config) stateUser() int {
	if info, err := os.Stat(c.stateDir); err == nil && c.forOwner && os.Geteuid() == 0 {
		return trustedfile.OwnerOf(info)
	}
	return os.Geteuid()
}

// checkState reports whether the journal, or a shadow's log, can be kept. It changes nothing.
func (c *config) checkState(report reporter) {
	dir, user := c.stateDir, c.stateUser()
	info, err := os.Stat(dir)
	detail := dir
	switch {
	case errors.Is(err, fs.ErrNotExist):
		detail, err = dir+", which does not exist yet and is made", canMake(dir)
	case err == nil:
		err = unix.Access(dir, unix.R_OK|unix.W_OK|unix.X_OK)
		if mode := info.Mode().Perm(); err == nil && user != os.Geteuid() {
			detail += fmt.Sprintf("; only user %d, who owns it, can run hsm-signer with it", user)
		} else if err == nil && mode&0o002 != 0 && trustedfile.OwnerOf(info) != user {
			err = fmt.Errorf("everyone may write to it (mode %04o): chmod o-w it", mode)
		}
	}
	if err != nil {
		err = fmt.Errorf("STATE_DIR %s: %w; name a directory that hsm-signer may write", dir, err)
	} else if journal.Locked(dir) {
		detail += "; a process that runs has the journal open"
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
func (c *config) checkFiles(report reporter) {
	for _, text := range c.warnings {
		report("files", text, errWarning)
	}
}
