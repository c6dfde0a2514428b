package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"hsm-signer/policy"
)

// maxPolicyFile bounds what is read of a policy.
const maxPolicyFile = 4 << 20

// readPolicyFile returns the text of a policy. It refuses a file that is not kept (see [requireKept]), unless anybody's
// will do. What is looked at and what is read is the same open file.
func readPolicyFile(path string, anybodys bool) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would be waited for
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%q is neither a file nor a built-in policy (%s)", path, strings.Join(policy.BuiltInNames(), ", "))
	case err != nil:
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file", path)
	case info.Size() > maxPolicyFile:
		return nil, fmt.Errorf("%s is %d bytes long; at most %d are read", path, info.Size(), maxPolicyFile)
	}
	if !anybodys {
		if err := requireKept(path, info, os.Geteuid()); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(file, maxPolicyFile))
}

// requireKept answers nil when nobody but root and the user self, and who is in its group, may write the file or put another in its
// place: where it is named, and where that leads, as the links of a ConfigMap do.
func requireKept(path string, info fs.FileInfo, self int) error {
	owner := uidOf(info)
	switch {
	case owner != 0 && owner != self:
		return fmt.Errorf("%s belongs to the user %d, and who may write it decides what is signed: chown it to root, or to the user %d, as whom this runs", path, owner, self)
	case info.Mode().Perm()&0o002 != 0:
		return fmt.Errorf("%s may be written by everybody (mode %04o): chmod o-w it, since who writes it decides what is signed", path, info.Mode().Perm())
	}
	dirs, err := placesOf(path)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := requireKeptIn(dir, path, self); err != nil {
			return err
		}
	}
	return nil
}

// placesOf lists the directories in which the file is, and each link on the way to it: who may write to one of them says where
// that leads.
func placesOf(path string) (dirs []string, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	const most = 40 // links, as Linux has it
	at, links := "/", 0
	for rest := strings.Split(path, "/"); len(rest) > 0 && links <= most; {
		name := rest[0]
		rest = rest[1:]
		next := filepath.Join(at, name)
		info, err := os.Lstat(next)
		switch {
		case err != nil:
			return nil, err
		case info.Mode()&fs.ModeSymlink == 0:
			if len(rest) == 0 {
				return append(dirs, at), nil
			}
			at = next
			continue
		}
		target, err := os.Readlink(next)
		if err != nil {
			return nil, err
		}
		dirs, links = append(dirs, at), links+1
		rest = append(strings.Split(target, "/"), rest...)
		if filepath.IsAbs(target) {
			at = "/"
		}
	}
	return nil, fmt.Errorf("%s: more than %d links lead on from it", path, most)
}

// requireKeptIn answers nil when nobody but root and the user self, and its group, may put another file in the place of the one in the
// directory. In a sticky one nobody may who does not own the file.
func requireKeptIn(dir, path string, self int) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner, everybody := uidOf(info), info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0
	switch {
	case owner != 0 && owner != self:
		return fmt.Errorf("%s may be replaced by the user %d, to whom the directory %s belongs: chown that to root, or to the user %d, as whom this runs", path, owner, dir, self)
	case everybody && !readOnly(dir):
		return fmt.Errorf("%s may be replaced by everybody, who may write to the directory %s (mode %04o): chmod o-w that", path, dir, info.Mode().Perm())
	}
	return nil
}

// readOnly tells whether a directory that everybody may write to is on a mount that nobody may, as that of a ConfigMap is.
func readOnly(dir string) bool { return errors.Is(unix.Access(dir, unix.W_OK), unix.EROFS) }

// uidOf is the user to whom a file belongs.
func uidOf(info fs.FileInfo) int {
	if stat, is := info.Sys().(*syscall.Stat_t); is {
		return int(stat.Uid)
	}
	return -1
}
