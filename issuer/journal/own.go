package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// openOwn opens a file of the state directory for writing, or for reading and writing, and creates
// it if the flags ask for it. A symbolic link, a file of another user than root and this one, and
// what is not a regular file are refused: what is written would go elsewhere.
func openOwn(path string, flags int) (*os.File, error) {
	f, err := openPlain(path, flags)
	if err != nil {
		return nil, err
	}
	if err := requireOwn(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openPlain opens a regular file, whoever owns it, and does not follow a symbolic link. A journal
// that is only read may be a copy that belongs to anyone.
func openPlain(path string, flags int) (*os.File, error) {
	// Without O_NONBLOCK opening a named pipe would block; for a regular file it changes nothing.
	f, err := os.OpenFile(path, flags|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if errors.Is(err, syscall.ELOOP) {
		return nil,
			fmt.Errorf("%s is a symbolic link, which is not followed: find out who made it, "+
				"and remove it", path)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file: find out who made it, and remove it", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// requireOwn returns nil if the open file belongs to root or to the user who runs this.
func requireOwn(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return ownedBy(info, f.Name(), os.Geteuid())
}

func ownedBy(info fs.FileInfo, path string, user int) error {
	stat, is := info.Sys().(*syscall.Stat_t)
	if is && stat.Uid != 0 && int(stat.Uid) != user {
		return fmt.Errorf("%s belongs to user %d, and this runs as user %d: run it as user %d, or "+
			"chown the file to user %d if hsm-signer is to run as that", path, stat.Uid, user,
			stat.Uid, user)
	}
	return nil
}
