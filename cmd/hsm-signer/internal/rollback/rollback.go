// Package rollback records that a person accepts that the journal lacks a line which a witness has
// seen.
package rollback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"hsm-signer/issuer/journal"
)

// File is the file in STATE_DIR by which "audit accept-rollback" tells a process that has the
// journal open.
const File = "accept-rollback"

// Record records once that a head is missing. It returns an error if it is not missing.
func Record(ctx context.Context, j *journal.Writer, head journal.Head) error {
	if contains, err := j.Contains(head); err != nil || contains {
		return errors.Join(err, fmt.Errorf("the journal %s has the line %s: there is nothing to "+
			"accept", j.ID(), head))
	}
	if j.Accepted(head) {
		return nil
	}
	return j.Append(ctx, journal.Rollback{HeadSeq: head.Seq, HeadSHA256: head.SHA256})
}

// HandOver has the process that has the journal open record that a head is missing. It writes a
// file as a whole: its reader sees nothing or all of it. The file gets the owner of the directory,
// who is the reader's user, since root may be the one who accepts.
func HandOver(dir string, head journal.Head) error {
	path := filepath.Join(dir, File)
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, head)
	if err = errors.Join(err, giveTo(f, dir), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// giveTo gives the file the owner of the directory, if it is another user's.
func giveTo(f *os.File, dir string) error {
	about, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner, is := about.Sys().(*syscall.Stat_t)
	if !is || int(owner.Uid) == os.Geteuid() {
		return nil
	}
	return f.Chown(int(owner.Uid), int(owner.Gid))
}
