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

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// smallDisk mounts a disk of that size, in the memory, until the end of the test.
func smallDisk(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	mounted(t, dir, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=0700"))
	return dir
}

// mounted says what to do when that could not be done, and takes the disk away when the test ends.
func mounted(t *testing.T, dir string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("mount a small disk: %v; run the tests as root, or as the root of a namespace: unshare --user --map-root-user --mount make test", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) { // EINVAL: it is not mounted
			t.Error(err)
		}
	})
}

// fill leaves no byte of the disk and returns what frees it again.
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

// requireNothingSigned has a request made while the journal is not well, and requires that it stays as it is, and
// that no certificate is signed.
func (s *signer) requireNothingSigned(t *testing.T, d *testenv.Daemon, c *crowd, words string) {
	t.Helper()
	must.OK(t, d.WaitNotReady(t.Context(), words))
	before := s.certificatesSigned(t)
	csr, err := c.askOne(t.Context())
	must.OK(t, err)
	must.Eventually(t, "the log to tell of the fault", func(context.Context) (bool, error) {
		return strings.Contains(d.Log(), fmt.Sprintf(`"request":%q`, csr.Name)), nil
	})
	now, err := c.admin.CertificatesV1().CertificateSigningRequests().Get(t.Context(), csr.Name, metav1.GetOptions{})
	must.OK(t, err)
	if after := s.certificatesSigned(t); after != before || len(now.Status.Conditions) > 0 || len(now.Status.Certificate) > 0 {
		t.Errorf("while the journal says %q: %d certificates were signed; the request has %d conditions", words, after-before, len(now.Status.Conditions))
	}
}

// certificatesSigned counts the signatures that are no test.
func (s *signer) certificatesSigned(t *testing.T) int {
	t.Helper()
	calls, err := s.shim.Calls()
	must.OK(t, err)
	a := &account{}
	a.count(calls, nil)
	return a.signatures - a.probes
}

func TestDiskIsFull(t *testing.T) {
	r := begin(t, 11, "the state directory's disk full under load, then freed", "no signature while it cannot write; recovers")
	disk := smallDisk(t, "6m") // of which 4 MiB are set aside
	s := shared.signer(t, "STATE_DIR="+filepath.Join(disk, "state"))
	s.state = filepath.Join(disk, "state")
	d := s.startReady(t)
	c := shared.newCrowd(t)
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		c.ask(t, of(20, 300))
	}()
	free := fill(t, disk)
	<-asked
	for i := 0; !notReady(t, d, "disk is full") && i < 20; i++ { // there may be a little room still, in a page that is not full
		c.ask(t, 10)
	}
	s.requireNothingSigned(t, d, c, "[-] journal: the journal's disk is full")
	open, err := c.lost(t.Context())
	must.OK(t, err)
	free()
	must.OK(t, d.WaitReady(t.Context()))
	took := c.waitForAll(t)
	stop(t, d)
	s.account(t).requireWhole(t, c)
	r.measured("full with %d requests, %d of them open; signed then 0", c.size(), len(open))
	r.measured("all issued %s after there was room, by itself; audit verify: exit code 0", seconds(took))
}

func notReady(t *testing.T, d *testenv.Daemon, words string) bool {
	t.Helper()
	ready, body, err := d.Readyz(t.Context())
	must.OK(t, err)
	return !ready && strings.Contains(body, words)
}

// A disk becomes read-only, as ext4 makes it after an error. The kernel lets nobody write any more, and an
// administrator looks at it and mounts it anew.
func TestDiskIsReadOnly(t *testing.T) {
	r := begin(t, 12, "the state directory's disk becomes read-only (ext4 after an error), is checked and mounted anew", "no signature while it cannot write; recovers")
	image, disk := filepath.Join(t.TempDir(), "image"), t.TempDir()
	must.OK(t, os.WriteFile(image, nil, 0o600))
	must.OK(t, os.Truncate(image, 32<<20))
	shell(t, "mkfs.ext4", "-q", image)
	out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", image, disk).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	mounted(t, disk, err)
	s := shared.signer(t, "STATE_DIR="+filepath.Join(disk, "state"))
	s.state = filepath.Join(disk, "state")
	d := s.startReady(t)
	c := shared.newCrowd(t)
	c.ask(t, of(10, 100))
	c.waitForAll(t) // ext4 may answer this sync and lose the line: see docs/failure-modes.md
	shell(t, "mount", "-o", "remount,abort", disk)
	c.ask(t, 1)
	s.requireNothingSigned(t, d, c, "[-] journal:")
	must.OK(t, d.Kill())
	shell(t, "umount", disk)
	if out, err := exec.CommandContext(t.Context(), "e2fsck", "-p", image).CombinedOutput(); err != nil && !strings.Contains(err.Error(), "exit status 1") { // 1: mended
		t.Fatalf("e2fsck: %v: %s", err, out)
	}
	shell(t, "mount", "-o", "loop", image, disk)
	d = s.startReady(t)
	took := c.waitForAll(t)
	stop(t, d)
	a := s.account(t)
	a.requireWhole(t, c)
	r.measured("signed while it was read-only 0; /readyz named the journal")
	r.measured("all %d issued %s after the next start; most certificates for one UID %d; audit verify: exit code 0", c.size(), seconds(took), a.most())
}

func shell(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s; the test needs root, and the packages e2fsprogs and mount", name, args, err, out)
	}
}

// The last line is torn, as a power cut leaves it.
func TestLastLineIsTorn(t *testing.T) {
	r := begin(t, 13, "the journal's last line torn", "recovers; says so")
	s := shared.signer(t)
	d := s.startReady(t)
	c := shared.newCrowd(t)
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
		t.Errorf("the log does not tell of it")
	}
	stop(t, d)
	a := s.account(t)
	a.requireWhole(t, c)
	r.measured("line %d (%s) torn, moved away and said; %d requests, all issued; most certificates for one UID %d; audit verify: exit code 0", last.Seq, last.Kind, c.size(), a.most())
}

func (s *signer) firstFile() string { return filepath.Join(s.state, "journal-00000001.jsonl") }

func (s *signer) readFile(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(s.firstFile())
	must.OK(t, err)
	return text
}

// One byte in the middle was changed: somebody was there.
func TestByteIsChanged(t *testing.T) {
	r := begin(t, 14, "one byte changed in the middle of the journal", "no signature; verify names the line; recovers when the byte is what it was")
	s := shared.signer(t)
	d := s.startReady(t)
	c := shared.newCrowd(t)
	c.ask(t, 10)
	c.waitForAll(t)
	stop(t, d)
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
	stop(t, d)
	s.account(t).requireWhole(t, c)
	r.measured("audit verify: exit code 2, %q", strings.TrimSpace(stderr))
	r.measured("signed meanwhile 0; all issued %s after the byte was put back", seconds(took))
}

// next is the line after: a change shows in the line itself when it is no JSON any more, else in the hash that the
// next one has of it.
func next(where string) string {
	var n int
	_, _ = fmt.Sscanf(where, "line %d", &n)
	return fmt.Sprintf("line %d", n+1)
}

// Many are refused, on a small disk: those that are not, are issued.
func TestRefusalsOnASmallDisk(t *testing.T) {
	refusals := of(200, 10_000)
	r := begin(t, 15, "10,000 refused requests with a small disk (16 MiB)", "issuing goes on")
	disk := smallDisk(t, "16m")
	s := shared.signer(t, "STATE_DIR="+filepath.Join(disk, "state"))
	s.state = filepath.Join(disk, "state")
	d := s.startReady(t)
	c := shared.newCrowd(t)
	hostile := shared.newHostiles(t)
	const parts = 10
	for range parts { // the good ones among them, and behind them
		hostile.ask(t, refusals/parts)
		c.ask(t, of(2, 40))
	}
	c.waitForAll(t)
	denied := hostile.waitForDenials(t)
	must.OK(t, d.WaitReady(t.Context()))
	stop(t, d)
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

// waitForDenials waits until all are denied and returns how many that are.
func (h *hostiles) waitForDenials(t *testing.T) int {
	t.Helper()
	denied := 0
	must.Eventually(t, "every hostile request to be denied", func(ctx context.Context) (bool, error) {
		now, err := h.requests(ctx)
		if err != nil {
			return false, err
		}
		denied = 0
		for _, csr := range now {
			if has(csr, certificatesv1.CertificateDenied) {
				denied++
			}
			if len(csr.Status.Certificate) > 0 {
				return false, fmt.Errorf("%s has a certificate", csr.Name)
			}
		}
		return denied == h.size(), nil
	})
	return denied
}
