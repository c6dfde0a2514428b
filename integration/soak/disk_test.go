package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// smallDisk mounts a file system of that size in memory until the end of the test.
func smallDisk(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	mounted(t, dir, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=0700"))
	return dir
}

// mounted fails the test with a hint if the mount failed, and unmounts when the test ends.
func mounted(t *testing.T, dir string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("mount a small disk: %v; run the tests as root, or as root of a namespace: "+
			"unshare --user --map-root-user --mount make test", err)
	}
	t.Cleanup(func() {
		err := syscall.Unmount(dir, syscall.MNT_DETACH)
		if err != nil && !errors.Is(err, syscall.EINVAL) { // EINVAL: not mounted
			t.Error(err)
		}
	})
}

// fill fills the disk to the last byte and returns a function that frees it.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	must.OK(t, err)
	defer f.Close()
	for size := 1 << 16; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else {
			must.OK(t, err)
		}
	}
	return func() { must.OK(t, os.Remove(path)) }
}

// requireNothingSigned creates a request while the journal cannot be written. It requires that the
// request stays unchanged and that no certificate is signed.
func (s *signer) requireNothingSigned(t *testing.T, d *testenv.Daemon, c *batch, words string) {
	t.Helper()
	must.OK(t, d.WaitNotReady(t.Context(), words))
	s.askUnanswered(t, d, c) // what was in the journal before may still be signed until then
	before := s.certificatesSigned(t)
	request := s.askUnanswered(t, d, c)
	now, err := c.answers(t.Context())
	must.OK(t, err)
	after := s.certificatesSigned(t)
	answer := now[request.GetUID()]
	if after != before || answer.conditions > 0 || len(answer.chain) > 0 {
		t.Errorf("while the journal reports %q: %d certificates were signed; the request has %d "+
			"conditions", words, after-before, answer.conditions)
	}
}

// askUnanswered creates a request and waits until the log has a fault of it.
func (s *signer) askUnanswered(t *testing.T, d *testenv.Daemon, c *batch) metav1.Object {
	t.Helper()
	request, err := c.askOne(t.Context())
	must.OK(t, err)
	must.Eventually(t, "the log to report the fault", func(context.Context) (bool, error) {
		return strings.Contains(d.Log(),
			fmt.Sprintf(`"request":%q`, c.kind.answer(request).name)), nil
	})
	return request
}

// certificatesSigned counts the signatures that are not test signatures.
func (s *signer) certificatesSigned(t *testing.T) int {
	t.Helper()
	calls, err := s.shim.Calls()
	must.OK(t, err)
	a := &account{}
	a.count(calls, nil)
	return a.signatures - a.probes
}

func TestDiskIsFull(t *testing.T) {
	r := begin(t, 11, "the state directory's disk full under load, then freed",
		"no signature while it cannot write; recovers")
	fillDisk(t, r, nil, shared.newBatch(t))
}

func fillDisk(t *testing.T, r *row, env []string, c *batch) {
	t.Helper()
	disk := smallDisk(t, "6m") // hsm-signer reserves 4 MiB of them
	s := shared.signer(t, append(env, "STATE_DIR="+filepath.Join(disk, "state"))...)
	s.state = filepath.Join(disk, "state")
	d := s.startReady(t)
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		c.ask(t, of(20, 300))
	}()
	free := fill(t, disk)
	<-asked
	// a page may still have a little room
	for i := 0; !notReady(t, d, "disk is full") && i < 20; i++ {
		c.ask(t, 10)
	}
	s.requireNothingSigned(t, d, c, "[-] journal: the journal's disk is full")
	open, err := c.lost(t.Context())
	must.OK(t, err)
	free()
	must.OK(t, d.WaitReady(t.Context()))
	took := c.waitForAll(t)
	must.OK(t, d.Shutdown())
	s.account(t).requireWhole(t, c)
	r.measured("full with %d requests, %d of them open; signed then 0", c.size(), len(open))
	r.measured("all issued %s after there was room, by itself; audit verify: exit code 0",
		seconds(took))
}

func notReady(t *testing.T, d *testenv.Daemon, words string) bool {
	t.Helper()
	ready, body, err := d.Readyz(t.Context())
	must.OK(t, err)
	return !ready && strings.Contains(body, words)
}

// A disk becomes read-only, as ext4 makes it after an error. An administrator checks it and mounts
// it again.
func TestDiskIsReadOnly(t *testing.T) {
	r := begin(t, 12,
		"the state directory's disk becomes read-only (ext4 after an error), is checked and "+
			"mounted again", "no signature while it cannot write; recovers")
	image, disk := filepath.Join(t.TempDir(), "image"), t.TempDir()
	must.OK(t, os.WriteFile(image, nil, 0o600))
	must.OK(t, os.Truncate(image, 32<<20))
	shell(t, "mkfs.ext4", "-q", image)
	out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", image,
		disk).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	mounted(t, disk, err)
	s := shared.signer(t, "STATE_DIR="+filepath.Join(disk, "state"))
	s.state = filepath.Join(disk, "state")
	d := s.startReady(t)
	c := shared.newBatch(t)
	c.ask(t, of(10, 100))
	c.waitForAll(t) // ext4 may answer this sync and lose the line: see docs/failure-modes.md
	shell(t, "mount", "-o", "remount,abort", disk)
	c.ask(t, 1)
	s.requireNothingSigned(t, d, c, "[-] journal:")
	must.OK(t, d.Kill())
	shell(t, "umount", disk)
	out, err = exec.CommandContext(t.Context(), "e2fsck", "-p", image).CombinedOutput()
	if err != nil && !strings.Contains(err.Error(), "exit status 1") { // 1: errors were corrected
		t.Fatalf("e2fsck: %v: %s", err, out)
	}
	shell(t, "mount", "-o", "loop", image, disk)
	d = s.startReady(t)
	took := c.waitForAll(t)
	must.OK(t, d.Shutdown())
	a := s.account(t)
	a.requireWhole(t, c)
	r.measured("signed while it was read-only 0; /readyz named the journal")
	r.measured("all %d issued %s after the next start; most certificates for one UID %d; audit "+
		"verify: exit code 0",
		c.size(), seconds(took), a.most())
}

func shell(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s; the test needs root and the packages e2fsprogs and mount", name,
			args, err, out)
	}
}

// The last line is incomplete, as after a power failure.
func TestLastLineIsTorn(t *testing.T) {
	r := begin(t, 13, "the journal's last line torn", "recovers; reports it")
	s := shared.signer(t)
	d := s.startReady(t)
	c := shared.newBatch(t)
	c.ask(t, 10)
	c.waitForAll(t)
	must.OK(t, d.Kill())
	lines := s.journal(t)
	last := lines[len(lines)-1]
	text := s.readFile(t)
	begins := bytes.LastIndexByte(text[:len(text)-1], '\n') + 1
	must.OK(t, os.WriteFile(s.firstFile(), text[:begins+(len(text)-begins)/2], 0o600))
	d = s.startReady(t)
	c.ask(t, 5)
	c.waitForAll(t)
	if !strings.Contains(d.Log(), "unfinished line, which was moved away") {
		t.Error("the log does not report the incomplete line")
	}
	must.OK(t, d.Shutdown())
	a := s.account(t)
	a.requireWhole(t, c)
	r.measured("line %d (%s) torn, moved away and logged; %d requests, all issued; "+
		"most certificates for one UID %d; audit verify: exit code 0", last.Seq, last.Kind,
		c.size(), a.most())
}

func (s *signer) firstFile() string { return filepath.Join(s.state, "journal-00000001.jsonl") }

func (s *signer) readFile(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(s.firstFile())
	must.OK(t, err)
	return text
}

// Somebody has changed one byte in the middle of the journal.
func TestByteIsChanged(t *testing.T) {
	r := begin(t, 14, "one byte changed in the middle of the journal",
		"no signature; verify names the line; recovers when the byte is what it was")
	s := shared.signer(t)
	d := s.startReady(t)
	c := shared.newBatch(t)
	c.ask(t, 10)
	c.waitForAll(t)
	must.OK(t, d.Shutdown())
	whole := s.readFile(t)
	changed := bytes.Clone(whole)
	at := len(changed) / 2
	changed[at] ^= 1
	must.OK(t, os.WriteFile(s.firstFile(), changed, 0o600))
	where := fmt.Sprintf("line %d", 1+bytes.Count(whole[:at], []byte("\n")))
	_, stderr, code := s.Command(t.Context(), s.ca, s.env, "audit", "verify")
	if code != 2 || !strings.Contains(stderr, where) && !strings.Contains(stderr, next(where)) {
		t.Errorf("audit verify: exit code %d, without %s: %s", code, where, stderr)
	}
	d = s.start(t)
	s.requireNothingSigned(t, d, c, "journal-00000001.jsonl")
	must.OK(t, os.WriteFile(s.firstFile(), whole, 0o600))
	must.OK(t, d.WaitReady(t.Context()))
	took := c.waitForAll(t)
	must.OK(t, d.Shutdown())
	s.account(t).requireWhole(t, c)
	r.measured("audit verify: exit code 2, %q", strings.TrimSpace(stderr))
	r.measured("signed meanwhile 0; all issued %s after the byte was put back", seconds(took))
}

// next returns the next line's number. A change shows in the changed line if that is no longer
// JSON, otherwise in the next line, which has its hash.
func next(where string) string {
	var n int
	_, _ = fmt.Sscanf(where, "line %d", &n)
	return fmt.Sprintf("line %d", n+1)
}

// Many refusals on a small disk do not keep hsm-signer from issuing.
func TestRefusalsOnASmallDisk(t *testing.T) {
	refusals := of(200, 10_000)
	r := begin(t, 15, "10,000 refused requests with a small disk (16 MiB)", "issuing continues")
	disk := smallDisk(t, "16m")
	s := shared.signer(t, "STATE_DIR="+filepath.Join(disk, "state"))
	s.state = filepath.Join(disk, "state")
	d := s.startReady(t)
	c := shared.newBatch(t)
	hostile := shared.newHostiles(t)
	const parts = 10
	for range parts { // with the good ones between the hostile ones
		hostile.ask(t, refusals/parts)
		c.ask(t, of(2, 40))
	}
	c.waitForAll(t)
	denied := hostile.waitForDenials(t)
	must.OK(t, d.WaitReady(t.Context()))
	must.OK(t, d.Shutdown())
	s.account(t).requireWhole(t, c)
	var size int64
	for _, name := range []string{"refusals.log", "refusals.log.1"} {
		if info, err := os.Stat(filepath.Join(s.state, name)); err == nil {
			size += info.Size()
		}
	}
	r.measured("%d refused, %d of %d good ones issued among them", denied, c.size(), c.size())
	r.measured("log of refusals %.1f MiB", float64(size)/(1<<20))
}

// waitForDenials waits until every request is denied, and returns their number.
func (h *hostiles) waitForDenials(t *testing.T) int {
	t.Helper()
	denied := 0
	must.Eventually(t, "every hostile request to be denied",
		func(ctx context.Context) (bool, error) {
			now, err := h.answers(ctx)
			denied = 0
			for _, answer := range now {
				if answer.refused {
					denied++
				}
				if len(answer.chain) > 0 {
					return false, fmt.Errorf("%s has a certificate", answer.name)
				}
			}
			return denied == h.size(), err
		})
	return denied
}
