package journal

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"hsm-signer/internal/must"
)

// stateFiles are the files in the state directory that a journal opens, each with a way to do it.
var stateFiles = map[string]func(t *testing.T, dir string) error{
	lockName:                 openJournal,
	"journal-00000001.jsonl": openJournal,
	RefusalsLog:              openDecisions(RefusalsLog),
	ShadowLog:                openDecisions(ShadowLog),
}

func openJournal(t *testing.T, dir string) error {
	j, err := Open(dir, Options{CA: newCA(t).cert})
	if err == nil {
		closeNow(t, j)
	}
	return err
}

func openDecisions(name string) func(t *testing.T, dir string) error {
	return func(t *testing.T, dir string) error {
		d := &Decisions{dir: dir, name: name, limit: 1 << 20}
		err := d.open()
		if d.file != nil {
			must.OK(t, d.file.Close())
		}
		return err
	}
}

// A file of the state directory that leads elsewhere is refused, and what it leads to is untouched.
func TestFilesThatLeadElsewhere(t *testing.T) {
	const theirs = "somebody else's"
	for name, use := range stateFiles {
		t.Run(name+" is a symbolic link", func(t *testing.T) {
			dir := t.TempDir()
			victim := filepath.Join(t.TempDir(), "victim")
			must.OK(t, os.WriteFile(victim, []byte(theirs), 0o600))
			must.OK(t, os.Symlink(victim, filepath.Join(dir, name)))
			if err := use(t, dir); err == nil ||
				!strings.Contains(err.Error(), "is a symbolic link") {
				t.Errorf("%v", err)
			}
			if text, err := os.ReadFile(victim); err != nil || string(text) != theirs {
				t.Errorf("the other file now holds %q, %v", text, err)
			}
			if Locked(dir) {
				t.Error("the other file counts as a lock")
			}
		})
		t.Run(name+" is a dangling link", func(t *testing.T) {
			dir, victim := t.TempDir(), filepath.Join(t.TempDir(), "victim")
			must.OK(t, os.Symlink(victim, filepath.Join(dir, name)))
			if err := use(t, dir); err == nil ||
				!strings.Contains(err.Error(), "is a symbolic link") {
				t.Errorf("%v", err)
			}
			if _, err := os.Lstat(victim); err == nil {
				t.Error("the other file was created")
			}
		})
		t.Run(name+" is a pipe", func(t *testing.T) {
			dir := t.TempDir()
			must.OK(t, syscall.Mkfifo(filepath.Join(dir, name), 0o600))
			if err := use(t, dir); err == nil {
				t.Error("a pipe was used")
			}
		})
	}
}

// A hard link to somebody else's file, or one that somebody else made before, is refused.
func TestFilesOfAnotherUser(t *testing.T) {
	for name, use := range stateFiles {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		must.OK(t, os.WriteFile(path, nil, 0o600))
		if os.Geteuid() == 0 { // only root can give a file away
			must.OK(t, os.Chown(path, 4711, -1))
			if err := use(t, dir); err == nil ||
				!strings.Contains(err.Error(), "belongs to user 4711") {
				t.Errorf("%s: %v", name, err)
			}
		}
		info, err := os.Stat(path)
		must.OK(t, err)
		if err := ownedBy(info, path, 4712); os.Geteuid() == 0 && err == nil {
			t.Errorf("%s: a file of another user passes", name)
		}
	}
	dir := t.TempDir()
	info, err := os.Stat(dir)
	must.OK(t, err)
	if err := ownedBy(info, dir, os.Geteuid()); err != nil {
		t.Error(err)
	}
	if err := ownedBy(info, dir, os.Geteuid()+1); os.Geteuid() != 0 && err == nil {
		t.Error("a directory of another user passes")
	}
}
