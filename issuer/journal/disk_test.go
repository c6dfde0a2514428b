//go:build linux

package journal

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
)

// diskVariable is set in the process that has a small disk of its own.
const diskVariable = "JOURNAL_TEST_DISK"

// onSmallDisk runs the test again in a process with a mount of its own: a disk of 1 MiB.
func onSmallDisk(t *testing.T, test func(t *testing.T, dir string)) {
	if dir := os.Getenv(diskVariable); dir != "" {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
			t.Fatalf("mount a small disk: %v", err)
		}
		test(t, filepath.Join(dir, "state"))
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), diskVariable+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(),
			Size: 1}}
	} else {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // makes the mounts private
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("with a small disk: %v\n%s", err, out)
	}
}

// fill leaves no byte of the disk and returns what frees it again.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	must.OK(t, err)
	defer f.Close()
	for size := 1 << 16; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		must.OK(t, os.Remove(path))
	}
}

// On a full disk no request is started, started ones are finished, and new ones start when there is
// space.
func TestFullDisk(t *testing.T) {
	onSmallDisk(t, func(t *testing.T, dir string) {
		ca := newCA(t)
		o := Options{CA: ca.cert, Reserve: 64 << 10, FileSize: 32 << 10}
		j := open(t, dir, o)
		issue(t, ca, j, "before")
		begun, begunSigned, begunPublished := ca.lines(t, j.ID(), "begun", time.Hour)
		put(t, j, begun)
		free := fill(t, dir)
		refused, n := "", 0
		for ; refused == ""; n++ {
			uid := fmt.Sprint("more-", n)
			intent, signed, published := ca.lines(t, j.ID(), uid, time.Hour)
			switch err := j.Append(t.Context(), intent); {
			case errors.Is(err, ErrFull):
				refused = uid
			case err != nil:
				t.Fatal(err)
			default:
				put(t, j, signed, published)
			}
		}
		if err := j.Ready(); !errors.Is(err, ErrFull) {
			t.Errorf("ready: %v", err)
		}
		if err := j.Append(t.Context(), Probe{When: ProbeReady}); !errors.Is(err, ErrFull) {
			t.Errorf("a test signature: %v", err)
		}
		look(t, j, refused, Unknown)
		put(t, j, begunSigned, begunPublished) // in the space that was set aside
		for j.broken == nil {                  // all of that space is used up
			if err := j.Append(t.Context(), begunPublished); err != nil &&
				!errors.Is(err, ErrBroken) {
				t.Fatal(err)
			}
		}
		if err := j.Ready(); !errors.Is(err, ErrBroken) || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("ready: %v", err)
		}
		free()
		j.tried = time.Time{}
		must.OK(t, j.Ready())
		issue(t, ca, j, refused)
		if s := verify(t, dir, ca); s.Counts.Published != n+2 {
			t.Errorf("%+v; %d", s, n)
		}
		closeNow(t, j)
		free = fill(t, dir)
		j = open(t, dir, o) // the line that reports it fits into the space that was set aside
		free()
		if err := j.Ready(); err != nil {
			t.Error(err)
		}
		issue(t, ca, j, "after")
		verify(t, dir, ca)
	})
}

// A disk that becomes read-only breaks the journal until it is writable again.
func TestReadOnlyDisk(t *testing.T) {
	onSmallDisk(t, func(t *testing.T, dir string) {
		ca := newCA(t)
		// A remount waits for those who may write, so the journal's descriptors are replaced below;
		// the disk's answer is made here.
		readOnly := func() bool {
			var s syscall.Statfs_t
			return syscall.Statfs(dir, &s) == nil && s.Flags&syscall.MS_RDONLY != 0
		}
		j := open(t, dir,
			Options{CA: ca.cert, Reserve: 64 << 10,
				openFile: inject(testFile{write: func(f file, data []byte) (int, error) {
					if readOnly() {
						return 0, syscall.EROFS
					}
					return f.Write(data)
				}})})
		issue(t, ca, j, "before")
		mount := filepath.Dir(dir)
		reading := func(f *os.File) *os.File {
			t.Helper()
			again, err := os.Open(f.Name())
			must.OK(t, errors.Join(err, f.Close()))
			return again
		}
		under := j.file.(*testFile)
		under.file = diskFile{reading(under.file.(diskFile).File)}
		j.lock = reading(j.lock)
		must.OK(t, syscall.Mount("", mount, "", syscall.MS_REMOUNT|syscall.MS_RDONLY,
			""))
		if err := j.Append(t.Context(), Probe{When: ProbeReady}); !errors.Is(err, ErrBroken) {
			t.Errorf("%v", err)
		}
		if err := j.Ready(); !errors.Is(err, syscall.EROFS) {
			t.Errorf("%v", err)
		}
		if _, err := Open(dir, Options{CA: ca.cert}); !errors.Is(err, syscall.EROFS) {
			t.Errorf("%v", err)
		}
		must.OK(t, syscall.Mount("", mount, "", syscall.MS_REMOUNT, ""))
		j.tried = time.Time{}
		must.OK(t, j.Ready())
		var err error
		if err = j.lock.Close(); err == nil {
			j.lock, err = lockDirectory(dir, j.options)
		}
		must.OK(t, err)
		issue(t, ca, j, "after")
		verify(t, dir, ca)
	})
}

// Refusals leave a tenth of the disk alone.
func TestRefusalsDoNotFillTheDisk(t *testing.T) {
	onSmallDisk(t, func(t *testing.T, dir string) {
		must.OK(t, os.Mkdir(dir, 0o700))
		r := OpenDecisions(dir, RefusalsLog, 0)
		for n := range 10_000 {
			for r.Dropped() == 0 && len(r.queue) == cap(r.queue) { // as fast as the disk
				runtime.Gosched()
			}
			r.Record(Decision{UID: fmt.Sprint(n), Reasons: []policy.Reason{{Message: "no"}}})
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if share, err := freeShare(dir); err != nil || share < decisionsSpared/2 ||
			r.Dropped() == 0 {
			t.Errorf("%.2f of the disk is free, %d refusals are dropped: %v", share,
				r.Dropped(), err)
		}
	})
}
