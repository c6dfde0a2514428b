// Package trustedfile reads files, and finds directories, that nobody but root and one user can
// change.
//
// Contract: a path is followed one component at a time, through every symbolic link. In each
// directory on the way only root or the user may replace the next component: the directory belongs
// to one of them, and others cannot write to it. Two kinds of directory that everyone may write to
// pass: a sticky one, where the next component belongs to root or the user, and one on a read-only
// mount, as the volumes of Secrets and ConfigMaps are. What is read is the file that was checked:
// it is opened by its resolved path, without following a link, and its owner and mode are those of
// the open file.
//
// A group may write a file or its directory, since root or the user let it ([Rules]). For a
// directory of state it may not, unless it is one of this process's own ([ResolveDir]).
package trustedfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Rules say what is required of a file.
type Rules struct {
	Limit  int64  // the most bytes that it may have
	Stake  string // what anyone who can write it controls, such as "what is signed"
	Anyone bool   // it may be anyone's, and a pipe: only its size counts

	// Exposed, if not nil, makes the file a secret: it gets the error for one that others can read,
	// and returns nil if it may be used anyway.
	Exposed func(error) error
}

// Read returns the content of the file.
func (r Rules) Read(path string) ([]byte, error) {
	file, err := r.open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, r.Limit+1))
	if err == nil && int64(len(text)) > r.Limit { // it is a pipe, or has grown
		err = fmt.Errorf("%s has more than %d bytes, which are the most that are read", path,
			r.Limit)
	}
	if err != nil {
		return nil, err
	}
	return text, nil
}

// Check returns nil if Read would return the file's content.
func (r Rules) Check(path string) error {
	file, err := r.open(path)
	if err != nil {
		return err
	}
	return file.Close()
}

// attempts is how often a file is looked for: a ConfigMap's may be swapped between two system
// calls.
const attempts = 3

func (r Rules) open(path string) (*os.File, error) {
	var err error
	for range attempts {
		var file *os.File
		if file, err = r.openOnce(path); !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
	}
	return nil, err
}

func (r Rules) openOnce(path string) (*os.File, error) {
	user, flags := os.Geteuid(), os.O_RDONLY
	real := path
	if !r.Anyone {
		var err error
		if real, err = walk(path,
			trust{user: user, path: path, groups: anyGroup}.step); err != nil {
			return nil, err
		}
		flags |= unix.O_NOFOLLOW | unix.O_NONBLOCK // opening a named pipe would block
	}
	file, err := os.OpenFile(real, flags, 0)
	if err != nil {
		return nil, err
	}
	if err := r.check(path, file, user); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// check returns nil if the open file fits the rules.
func (r Rules) check(path string, file *os.File, user int) error {
	info, err := file.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular() && !(r.Anyone && info.Mode()&fs.ModeNamedPipe != 0):
		return fmt.Errorf("%s is not a regular file", path)
	case info.Size() > r.Limit:
		return fmt.Errorf("%s has %d bytes, and at most %d are read", path, info.Size(), r.Limit)
	case r.Anyone:
		return nil
	}
	return r.checkOwner(path, info, user)
}

func (r Rules) checkOwner(path string, info fs.FileInfo, user int) error {
	perm := info.Mode().Perm()
	switch owner := OwnerOf(info); {
	case owner != 0 && owner != user:
		return fmt.Errorf("%s belongs to user %d, and whoever can write it controls %s: "+
			"chown it to root, or to user %d, the user of this process", path, owner, r.Stake, user)
	case perm&0o002 != 0:
		return fmt.Errorf("%s can be written by everyone (mode %04o), and whoever can write it "+
			"controls %s: chmod o-w it", path, perm, r.Stake)
	case perm&0o004 != 0 && r.Exposed != nil:
		return r.Exposed(fmt.Errorf("%s can be read by everyone (mode %04o), and is a secret: "+
			"chmod o-r it (0400, or 0440 for its group)", path, perm))
	}
	return nil
}

// ResolveDir returns the path of a directory without any symbolic link in it, and an error if
// anyone but root and the user can replace one of its components, or owns it. A directory that does
// not exist yet is resolved as far as it does.
func ResolveDir(path string, user int) (string, error) {
	real, err := walk(path, trust{user: user, path: path, groups: ownGroup}.step)
	if errors.Is(err, fs.ErrNotExist) && real != "" {
		return real, nil
	}
	if err != nil {
		return "", err
	}
	info, err := os.Lstat(real)
	if err != nil {
		return "", err
	}
	switch owner := OwnerOf(info); {
	case !info.IsDir():
		return "", fmt.Errorf("%s is not a directory", path)
	case owner != 0 && owner != user:
		return "",
			fmt.Errorf("%s belongs to user %d: chown it to user %d, the user of this process, "+
				"or name another directory", path, owner, user)
	}
	return real, nil
}

// trust says whose components a path may have.
type trust struct {
	user   int
	path   string             // as the user wrote it, for errors
	groups func(gid int) bool // reports whether a group may write to the directories
}

func anyGroup(int) bool { return true }

// ownGroup reports whether the group is root's or one of this process's.
func ownGroup(gid int) bool {
	groups, err := os.Getgroups()
	return gid == 0 || gid == os.Getegid() || err == nil && slices.Contains(groups, gid)
}

// step returns nil if only root and the user can replace an entry of the directory.
func (t trust) step(dir, name string, entry fs.FileInfo) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	owner, perm := OwnerOf(info), info.Mode().Perm()
	byAll, byGroup := perm&0o002 != 0, perm&0o020 != 0 && !t.groups(gidOf(info))
	switch {
	case owner != 0 && owner != t.user:
		return fmt.Errorf("%s can be replaced by user %d, who owns the directory %s: "+
			"chown that to root, or to user %d, the user of this process", t.path, owner, dir,
			t.user)
	case !byAll && !byGroup || readOnly(dir):
		return nil
	case info.Mode()&fs.ModeSticky != 0:
		if owner := OwnerOf(entry); owner != 0 && owner != t.user {
			return fmt.Errorf("%s can be replaced by user %d, who owns %s: name another path",
				t.path, owner, filepath.Join(dir, name))
		}
		return nil
	case byAll:
		return fmt.Errorf("%s can be replaced by everyone, since everyone may write to the "+
			"directory %s (mode %04o): chmod o-w that", t.path, dir, perm)
	}
	return fmt.Errorf("%s can be replaced by the group %d, which may write to the directory %s "+
		"(mode %04o): chmod g-w that", t.path, gidOf(info), dir, perm)
}

// readOnly reports whether the directory is on a read-only mount.
func readOnly(dir string) bool { return errors.Is(unix.Access(dir, unix.W_OK), unix.EROFS) }

// maxLinks is how many symbolic links a path may lead through, as in Linux.
const maxLinks = 40

// walk follows a path and returns it without symbolic links. Before it follows a component it calls
// step with the directory, the name and what the name stands for. If a component does not exist,
// the error is [fs.ErrNotExist], and the path is the resolved part with the rest as it was written.
func walk(path string, step func(dir, name string, entry fs.FileInfo) error) (string, error) {
	path, err := absolute(path)
	if err != nil {
		return "", err
	}
	at, links := "/", 0
	for rest := strings.Split(path, "/"); len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		entry, err := os.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			return filepath.Join(append([]string{next}, rest...)...), err
		}
		if err != nil {
			return "", err
		}
		if err := step(at, name, entry); err != nil {
			return "", err
		}
		if entry.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", err
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s leads through more than %d symbolic links", path, maxLinks)
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}

// absolute returns the path from the root. It is not cleaned: ".." after a link is above where the
// link leads.
func absolute(path string) (string, error) {
	if path == "" {
		return "", errors.New("the path is empty")
	}
	if filepath.IsAbs(path) {
		return path, nil
	}
	wd, err := os.Getwd()
	return wd + "/" + path, err
}

// OwnerOf returns the user who owns the file, and -1 if that is unknown.
func OwnerOf(info fs.FileInfo) int {
	if stat, is := info.Sys().(*syscall.Stat_t); is {
		return int(stat.Uid)
	}
	return -1
}

func gidOf(info fs.FileInfo) int {
	if stat, is := info.Sys().(*syscall.Stat_t); is {
		return int(stat.Gid)
	}
	return -1
}
