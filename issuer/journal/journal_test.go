package journal

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
)

// aProbe says that a test signature is made.
var aProbe = Probe{When: ProbeBegin, Text: "test"}

// A testCA signs in software.
type testCA struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

func newCA(t testing.TB) *testCA {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	must.OK(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	must.OK(t, err)
	cert, err := x509.ParseCertificate(der)
	must.OK(t, err)
	return &testCA{cert, key}
}

// lines returns what the journal records of one request, from the intent to the publication.
func (ca *testCA) lines(t testing.TB, id ID, uid string, lifetime time.Duration) (Intent, Signed,
	Published) {
	t.Helper()
	serial, err := id.NewSerial()
	must.OK(t, err)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: uid}, DNSNames: []string{"a.example"},
		NotBefore: time.Now().Add(-time.Minute).UTC(), NotAfter: time.Now().Add(lifetime).UTC(),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, ca.key.Public(), ca.key)
	must.OK(t, err)
	tbs, err := tbsOf(der)
	must.OK(t, err)
	signed, err := NewSigned(uid, der, ca.cert)
	must.OK(t, err)
	text := FormatSerial(serial)
	return Intent{
		UID: uid, Name: "csr-" + uid, Signer: "example.com/calico", Rule: "typha", PolicyHash: "0f",
		RequestSHA256: "0a",
		Requester: policy.Requester{Username: "system:serviceaccount:a:b", Groups: []string{"g"},
			Extra: map[string][]string{"authentication.kubernetes.io/pod-name": {"p"}}},
		Names: []string{"CN=" + uid, "DNS:a.example"}, Serial: text, TBS: tbs,
	}, signed, Published{uid, text}
}

func open(t testing.TB, dir string, o Options) *Writer {
	t.Helper()
	j, err := Open(dir, o)
	must.OK(t, err)
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j
}

func closeNow(t testing.TB, j *Writer) {
	t.Helper()
	must.OK(t, j.Close())
}

func put(t testing.TB, j *Writer, entries ...Entry) {
	t.Helper()
	for _, e := range entries {
		if err := j.Append(t.Context(), e); err != nil {
			t.Fatalf("%s: %v", e.Kind(), err)
		}
	}
}

// issue puts whole lives of certificates into the journal.
func issue(t testing.TB, ca *testCA, j *Writer, uids ...string) {
	t.Helper()
	for _, uid := range uids {
		intent, signed, published := ca.lines(t, j.ID(), uid, time.Hour)
		put(t, j, intent, signed, published)
	}
}

func look(t testing.TB, j *Writer, uid string, want State) Record {
	t.Helper()
	r, err := j.Lookup(uid)
	if err != nil || r.State != want {
		t.Fatalf("request %s: %s, %v; want %s", uid, r.State, err, want)
	}
	return r
}

func verify(t testing.TB, dir string, ca *testCA) Summary {
	t.Helper()
	return must.Value(Verify(dir, VerifyOptions{CAs: []*x509.Certificate{ca.cert}}))(t)
}

func TestWhatIsWrittenIsKnownAlsoAfterARestart(t *testing.T) {
	ca, dir := newCA(t), filepath.Join(t.TempDir(), "state")
	j := open(t, dir, Options{CA: ca.cert, Version: "v1"})
	intent, signed, published := ca.lines(t, j.ID(), "one", time.Hour)
	second, secondSigned, _ := ca.lines(t, j.ID(), "two", time.Hour)
	third, _, _ := ca.lines(t, j.ID(), "three", time.Hour)
	look(t, j, "one", Unknown)
	put(t, j, aProbe, intent)
	if r := look(t, j, "one", Intended); !bytes.Equal(r.Intent.TBS, intent.TBS) ||
		r.Intent.Requester.Extra["authentication.kubernetes.io/pod-name"][0] != "p" {
		t.Errorf("%+v", r)
	}
	put(t, j, signed, second, secondSigned, third, published)
	for again := range 3 {
		if r := look(t, j, "one", IsPublished); !bytes.Equal(r.Certificate, signed.Certificate) ||
			!bytes.Equal(r.Intent.TBS, intent.TBS) {
			t.Errorf("%d: %+v", again, r)
		}
		if r := look(t, j, "two", HasCertificate); !bytes.Equal(r.Certificate,
			secondSigned.Certificate) || r.Intent.Name != "csr-two" {
			t.Errorf("%d: %+v", again, r)
		}
		if all := j.Unpublished(); len(all) != 2 || all[0].Intent.UID != "two" ||
			all[1].Intent.UID != "three" || all[1].State != Intended {
			t.Errorf("%d: %+v", again, all)
		}
		closeNow(t, j)
		j = open(t, dir, Options{CA: ca.cert})
	}
	put(t, j, Orphaned{"three", third.Serial, "the request is gone"},
		Orphaned{"two", second.Serial, "why"})
	if r := look(t, j, "two", IsOrphaned); !bytes.Equal(r.Certificate, secondSigned.Certificate) {
		t.Errorf("%+v", r)
	}
	if r := look(t, j, "three", IsOrphaned); r.Certificate != nil ||
		!bytes.Equal(r.Intent.TBS, third.TBS) {
		t.Errorf("%+v", r)
	}
	want := Counts{Intents: 3, Signed: 2, Published: 1, Orphaned: 2, Probes: 1, Opened: 4}
	if s := verify(t, dir, ca); s.Counts != want || s.Head != j.Head() || s.Journal != j.ID() ||
		s.Unfinished != 0 || s.Torn != 0 {
		t.Errorf("%+v", s)
	}
}

func TestFilesAreTheOwnersAlone(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	must.OK(t, os.Chmod(dir, 0o777))
	open(t, dir, Options{CA: ca.cert})
	for path, want := range map[string]os.FileMode{dir: 0o700, filePath(dir, 1): 0o600,
		filepath.Join(dir, lockName): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v", path, info.Mode().Perm(), err)
		}
	}
}

func TestOneRequestHasOneCertificate(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	j := open(t, dir, Options{CA: ca.cert})
	intent, signed, published := ca.lines(t, j.ID(), "one", time.Hour)
	other, otherSigned, otherPublished := ca.lines(t, j.ID(), "one", time.Hour)
	refused := func(what string, entries ...Entry) {
		t.Helper()
		for _, e := range entries {
			if err := j.Append(t.Context(), e); !errors.Is(err, ErrConflict) {
				t.Errorf("%s: %s: %v", what, e.Kind(), err)
			}
		}
	}
	foreign, foreignSigned, _ := newCA(t).lines(t, j.ID(), "foreign", time.Hour)
	misnamed := intent
	misnamed.Serial = other.Serial
	elsewhere, _, _ := ca.lines(t, "12345678", "one", time.Hour)
	refused("nothing known", signed, published, Orphaned{"one", intent.Serial, ""}, misnamed,
		elsewhere, Opened{Journal: j.ID()}, Intent{}, Signed{}, Published{}, Probe{}, Checkpoint{})
	put(t, j, intent, foreign)
	otherBytes := otherSigned
	otherBytes.Serial = intent.Serial
	unverified := Signed{UID: "one", Serial: intent.Serial, Certificate: signed.Certificate}
	refused("intended", intent, other, otherSigned, published, Orphaned{"one", other.Serial, ""},
		foreignSigned, otherBytes, unverified)
	if _, err := NewSigned("one", signed.Certificate, newCA(t).cert); err == nil {
		t.Error("the signature of another CA is verified")
	}
	put(t, j, signed)
	refused("signed", intent, other, signed, otherPublished)
	put(t, j, published)
	refused("published", intent, other, signed, otherPublished, Orphaned{"one", intent.Serial, ""})
	put(t, j, published, Orphaned{"foreign", foreign.Serial, "why"})
	other.Anew = true
	refused("anew, though published", other)
	again, againSigned, againPublished := ca.lines(t, j.ID(), "foreign", time.Hour)
	refused("orphaned", again, againPublished)
	again.Anew = true
	put(t, j, again, againSigned, againPublished)
	verify(t, dir, ca)
}

func TestAnOrphanThatIsWantedAgainIsPublished(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	j := open(t, dir, Options{CA: ca.cert})
	intent, signed, published := ca.lines(t, j.ID(), "one", time.Hour)
	put(t, j, intent, signed, Orphaned{"one", intent.Serial, "the request is gone"}, published)
	look(t, j, "one", IsPublished)
	if s := verify(t, dir, ca); s.Counts.Published != 1 || s.Counts.Orphaned != 1 {
		t.Errorf("%+v", s)
	}
}

// A certificate that its request may have taken is one that the client may hold: it is never issued
// a second time, and is published when the request comes back.
func TestUnconfirmedIsTakenForDelivered(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	o := Options{CA: ca.cert, FileSize: 1}
	j := open(t, dir, o)
	intent, signed, published := ca.lines(t, j.ID(), "one", time.Hour)
	unconfirmed := Unconfirmed{"one", intent.Serial, "the request is gone"}
	put(t, j, intent)
	if err := j.Append(t.Context(), unconfirmed); !errors.Is(err, ErrConflict) {
		t.Errorf("before it was signed: %v", err)
	}
	put(t, j, signed, unconfirmed)
	again, _, _ := ca.lines(t, j.ID(), "one", time.Hour)
	again.Anew = true
	for range 2 {
		if r := look(t, j, "one", IsUnconfirmed); !bytes.Equal(r.Certificate, signed.Certificate) {
			t.Errorf("%+v", r)
		}
		for _, e := range []Entry{again, unconfirmed, Orphaned{"one", intent.Serial, "why"}} {
			if err := j.Append(t.Context(), e); !errors.Is(err, ErrConflict) {
				t.Errorf("%s: %v", e.Kind(), err)
			}
		}
		closeNow(t, j)
		j = open(t, dir, o)
	}
	if s := verify(t, dir, ca); s.Counts.Unconfirmed != 1 || s.Counts.Orphaned != 0 ||
		s.Unfinished != 0 {
		t.Errorf("%+v", s)
	}
	put(t, j, published)
	look(t, j, "one", IsPublished)
	verify(t, dir, ca)
}

// What an earlier process has started is distinct from what this one has.
func TestInherited(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	j := open(t, dir, Options{CA: ca.cert})
	one, oneSigned, _ := ca.lines(t, j.ID(), "one", time.Hour)
	put(t, j, one)
	if r := look(t, j, "one", Intended); r.Inherited {
		t.Error("inherited from this process")
	}
	closeNow(t, j)
	j = open(t, dir, Options{CA: ca.cert})
	two, _, _ := ca.lines(t, j.ID(), "two", time.Hour)
	put(t, j, oneSigned, two)
	for _, r := range j.Unpublished() {
		if want := r.Intent.UID == "one"; r.Inherited != want {
			t.Errorf("%s: inherited is %t", r.Intent.UID, r.Inherited)
		}
	}
}

func TestSerialNumbersCarryTheID(t *testing.T) {
	for range 1000 {
		id, err := newID()
		if err != nil || id.check() != nil {
			t.Fatalf("%s: %v", id, err)
		}
		serial, err := id.NewSerial()
		if err != nil || serial.Sign() <= 0 || serial.BitLen() > 159 ||
			!id.Carries(FormatSerial(serial)) {
			t.Fatalf("%s: %v %v", id, serial, err)
		}
	}
}

func TestOnlyOneProcessWrites(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	if Locked(dir) {
		t.Error("locked, though nobody writes")
	}
	j := open(t, dir, Options{CA: ca.cert})
	if _, err := Open(dir, Options{CA: ca.cert}); !errors.Is(err, ErrLocked) ||
		!strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("the second one: %v", err)
	}
	if !Locked(dir) {
		t.Error("not locked")
	}
	closeNow(t, j)
	if err := j.Append(t.Context(), Probe{When: ProbeReady}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	open(t, dir, Options{CA: ca.cert})
}

func TestRotationCarriesTheChain(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	o := Options{CA: ca.cert, FileSize: 4000}
	j := open(t, dir, o)
	var uids []string
	for i := range 20 {
		uids = append(uids, fmt.Sprint("uid-", i))
	}
	issue(t, ca, j, uids[:10]...)
	closeNow(t, j)
	j = open(t, dir, o)
	issue(t, ca, j, uids[10:]...)
	if s := verify(t, dir, ca); s.Files < 5 || s.Counts.Published != 20 || s.Head != j.Head() {
		t.Errorf("%+v", s)
	}
	for _, uid := range uids {
		look(t, j, uid, IsPublished)
	}
	closeNow(t, j)
	must.OK(t, os.Rename(filePath(dir, 2), filepath.Join(dir, "away")))
	var fault *Fault
	if _, err := Open(dir, o); !errors.As(err, &fault) || fault.File != "journal-00000002.jsonl" ||
		!strings.Contains(err.Error(), "missing") {
		t.Errorf("a file is missing: %v", err)
	}
}

// Lines that many write at once share a sync.
func TestWritersShareASync(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	var syncs atomic.Int32
	gate := make(chan struct{})
	j := open(t, dir, Options{CA: ca.cert, openFile: inject(testFile{sync: func(f file) error {
		if syncs.Add(1) == 2 { // 1 is Open's
			<-gate
		}
		return f.Sync()
	}})})
	var started, ended sync.WaitGroup
	for i := range 64 {
		intent, _, _ := ca.lines(t, j.ID(), fmt.Sprint(i), time.Hour)
		started.Add(1)
		ended.Go(func() {
			p, err := j.start(intent)
			started.Done()
			if err == nil {
				err = p.wait(t.Context())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	started.Wait()
	close(gate)
	ended.Wait()
	if n := syncs.Load() - 1; n < 1 || n > 2 {
		t.Errorf("%d syncs for 64 lines", n)
	}
	if s := verify(t, dir, ca); s.Counts.Intents != 64 {
		t.Errorf("%+v", s)
	}
}

// reopenNow is what Ready does for a broken journal, without the pause between two tries.
func (j *Writer) reopenNow() error {
	j.io.Lock()
	defer j.io.Unlock()
	defer j.work()()
	return j.reopen()
}

func TestNobodyWritesForARequestTwiceAtOnce(t *testing.T) {
	ca := newCA(t)
	gate := make(chan struct{})
	entered := make(chan struct{}, 10)
	j := open(t, t.TempDir(),
		Options{CA: ca.cert, openFile: inject(testFile{sync: func(f file) error {
			if entered <- struct{}{}; len(entered) > 1 {
				<-gate
			}
			return f.Sync()
		}})})
	intent, _, _ := ca.lines(t, j.ID(), "one", time.Hour)
	p, err := j.start(intent)
	must.OK(t, err)
	if err := j.Append(t.Context(), intent); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	look(t, j, "one", Unknown) // what is not on the disk is not known
	close(gate)
	must.OK(t, p.wait(t.Context()))
	look(t, j, "one", Intended)
}

// A limit that is reached shows before a request runs into it, and goes away by itself or by a
// setting.
func TestLimits(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	o := Options{CA: ca.cert, MaxUnfinished: 2, MaxRequests: 3, FileSize: 1}
	j := open(t, dir, o)
	a, aSigned, aPublished := ca.lines(t, j.ID(), "a", time.Hour)
	b, bSigned, bPublished := ca.lines(t, j.ID(), "b", time.Hour)
	c, _, _ := ca.lines(t, j.ID(), "c", time.Hour)
	reached := func(words string) {
		t.Helper()
		for what, err := range map[string]error{"append": j.Append(t.Context(), c),
			"ready": j.Ready(), "state": j.State()} {
			if !errors.Is(err, ErrTooMany) || !strings.Contains(err.Error(), words) {
				t.Errorf("%s: %v; want %q", what, err, words)
			}
		}
	}
	put(t, j, a)
	if err := j.State(); err != nil {
		t.Error(err)
	}
	put(t, j, b)
	reached("unfinished requests: 2 are")
	put(t, j, aSigned, aPublished, bSigned, bPublished)
	if err := j.Ready(); err != nil {
		t.Error(err)
	}
	issue(t, ca, j, "d")
	reached("requests: it knows 3")
	put(t, j, bPublished) // what was started is finished, and published again
	look(t, j, "a", IsPublished)
	closeNow(t, j)
	o.MaxRequests++
	j = open(t, dir, o)
	issue(t, ca, j, "c")
	if u := j.Usage(); u != (Usage{4, 4, 0, 2}) {
		t.Errorf("%+v", u)
	}
}

// A process that has lost the lock without knowing it writes nothing, nor does one behind whose
// lines there are others.
func TestAnotherWriterIsNoticed(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	first := open(t, dir, Options{CA: ca.cert})
	issue(t, ca, first, "one")
	must.OK(t, os.Remove(filepath.Join(dir, lockName)))
	second := open(t, dir, Options{CA: ca.cert})
	if err := first.Append(t.Context(), Probe{When: ProbeReady}); !errors.Is(err, ErrBroken) ||
		!strings.Contains(err.Error(), "removed or replaced") {
		t.Errorf("without the lock: %v", err)
	}
	first.tried = time.Time{}
	if err := first.Ready(); !errors.Is(err, ErrBroken) {
		t.Errorf("it goes on: %v", err)
	}
	issue(t, ca, second, "two")
	f, err := os.OpenFile(filePath(dir, 1), os.O_WRONLY|os.O_APPEND, 0)
	must.OK(t, err)
	if _, err := f.WriteString(`{"seq":`); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(),
		second.Append(t.Context(), Probe{When: ProbeReady})); !errors.Is(err, ErrBroken) ||
		!strings.Contains(err.Error(), "another process") {
		t.Errorf("behind others' bytes: %v", err)
	}
	if err := second.Ready(); err != nil || second.Repaired() == nil {
		t.Errorf("it does not go on: %v", err)
	}
	issue(t, ca, second, "three")
	verify(t, dir, ca)
}

// A lock that the system has forgotten, and given to another, is not taken for one's own: what the
// other has written stays as it is.
func TestForgottenLockIsNoticed(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	first := open(t, dir, Options{CA: ca.cert, FileSize: 1}) // so that each batch begins a new file
	issue(t, ca, first, "one")
	// as a network's file system does
	must.OK(t, syscall.Flock(int(first.lock.Fd()), syscall.LOCK_UN))
	second := open(t, dir, Options{CA: ca.cert, FileSize: 1})
	issue(t, ca, second, "two")
	before := verify(t, dir, ca)
	for range 2 {
		if err := first.Append(t.Context(), Probe{When: ProbeReady}); !errors.Is(err, ErrBroken) ||
			!errors.Is(err, ErrLocked) {
			t.Errorf("without the lock: %v", err)
		}
		first.tried = time.Time{}
		if err := first.Ready(); !errors.Is(err, ErrLocked) {
			t.Errorf("it goes on: %v", err)
		}
	}
	if after := verify(t, dir, ca); after.Head != before.Head || after.Files != before.Files {
		t.Errorf("the head was %s, of file %d, and is %s, of %d", before.Head, before.Files,
			after.Head, after.Files)
	}
	issue(t, ca, second, "three")
	verify(t, dir, ca)
}

// testFile is a real file that can be made to fail, as no real one does on demand.
type testFile struct {
	file
	write  func(f file, data []byte) (int, error)
	sync   func(f file) error
	failed bool
}

// note remembers an error; nobody may write or sync afterwards.
func (f *testFile) note(err error) error {
	if f.failed {
		panic("a descriptor is used again that has failed")
	}
	f.failed = err != nil
	return err
}

// inject opens files that fail as this one does.
func inject(like testFile) func(path string) (file, error) {
	return func(path string) (file, error) {
		f, err := openDiskFile(path)
		if err != nil {
			return nil, err
		}
		return &testFile{file: f, write: like.write, sync: like.sync}, nil
	}
}

func (f *testFile) Write(data []byte) (n int, err error) {
	write := f.write
	if write == nil {
		write = file.Write
	}
	n, err = write(f.file, data)
	return n, f.note(err)
}

func (f *testFile) Sync() error {
	sync := f.sync
	if sync == nil {
		sync = file.Sync
	}
	return f.note(sync(f.file))
}

// A disk that hangs holds up nobody but those who wait for it.
func TestADiskThatHangsIsNotWaitedFor(t *testing.T) {
	ca := newCA(t)
	gate, hangs := make(chan struct{}), make(chan struct{})
	var late, syncs atomic.Int64
	j := open(t, t.TempDir(), Options{
		CA:  ca.cert,
		now: func() time.Time { return time.Now().Add(time.Duration(late.Load())) },
		openFile: inject(testFile{sync: func(f file) error {
			if syncs.Add(1) == 2 { // 1 is Open's
				close(hangs)
				<-gate
			}
			return f.Sync()
		}}),
	})
	p, err := j.start(Probe{When: ProbeReady})
	must.OK(t, err)
	<-hangs
	if err := j.Ready(); err != nil {
		t.Errorf("at once: %v", err)
	}
	late.Store(int64(patience + time.Second))
	if err := j.Ready(); !errors.Is(err, ErrSlow) {
		t.Errorf("later: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if head := j.Head(); head.Seq != 1 {
		t.Error(head)
	}
	look(t, j, "one", Unknown)
	close(gate)
	if err := p.wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := j.Ready(); err != nil {
		t.Error(err)
	}
}

// After a failed write or sync nothing is taken, and the descriptor is not used again, until the
// journal is reopened; then what was not synced is written again.
func TestAFailedDescriptorIsNotUsedAgain(t *testing.T) {
	var bad atomic.Bool
	for name, failing := range map[string]testFile{
		"sync": {sync: func(f file) error {
			if bad.Load() {
				return syscall.EIO
			}
			return f.Sync()
		}},
		"half a write": {write: func(f file, data []byte) (int, error) {
			if bad.Load() {
				n, _ := f.Write(data[:len(data)/2])
				return n, syscall.ENOSPC
			}
			return f.Write(data)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			ca, dir := newCA(t), t.TempDir()
			opened := 0
			j := open(t, dir, Options{CA: ca.cert, openFile: func(path string) (file, error) {
				opened++
				return inject(failing)(path)
			}})
			issue(t, ca, j, "before")
			intent, signed, published := ca.lines(t, j.ID(), "one", time.Hour)
			bad.Store(true)
			head := j.Head()
			for range 3 {
				if err := j.Append(t.Context(), intent); !errors.Is(err, ErrBroken) ||
					!strings.Contains(err.Error(), "journal-00000001") {
					t.Errorf("%v", err)
				}
			}
			if j.Head() != head || opened != 1 {
				t.Errorf("the head has moved, or the file was opened %d times", opened)
			}
			if err := j.reopenNow(); !errors.Is(err, ErrBroken) {
				t.Errorf("reopened, though it fails as before: %v", err)
			}
			look(t, j, "before", IsPublished)
			bad.Store(false)
			must.OK(t, j.reopenNow())
			if name == "sync" {
				look(t, j, "one", Intended) // the whole line was there
			} else {
				look(t, j, "one", Unknown)
				if r := j.Repaired(); r == nil || r.Bytes == 0 {
					t.Errorf("half a line: %+v", r)
				}
				put(t, j, intent)
			}
			put(t, j, signed, published)
			if s := verify(t, dir, ca); s.Counts.Opened != 2 || s.Counts.Published != 2 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// What was synced and is gone is not gone on from.
func TestSyncedLinesThatAreGoneStopTheJournal(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	var bad atomic.Bool
	j := open(t, dir, Options{CA: ca.cert, openFile: inject(testFile{sync: func(f file) error {
		if bad.Load() {
			return syscall.EIO
		}
		return f.Sync()
	}})})
	issue(t, ca, j, "before")
	must.OK(t, os.Truncate(filePath(dir, 1), j.size-1))
	bad.Store(true)
	if err := j.Append(t.Context(), Probe{When: ProbeReady}); !errors.Is(err, ErrBroken) {
		t.Error(err)
	}
	bad.Store(false)
	var fault *Fault
	if err := j.Ready(); !errors.As(err, &fault) || !errors.Is(err, ErrBroken) {
		t.Errorf("%v", err)
	}
}

func BenchmarkAppend(b *testing.B) {
	var single float64
	for _, callers := range []int{1, 32} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			ca := newCA(b)
			j := open(b, b.TempDir(), Options{CA: ca.cert})
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var group sync.WaitGroup
			for range callers {
				group.Go(func() {
					for left.Add(-1) >= 0 {
						if err := j.Append(b.Context(),
							aProbe); err != nil {
							b.Error(err)
						}
					}
				})
			}
			group.Wait()
			rate := float64(b.N) / b.Elapsed().Seconds()
			b.ReportMetric(rate, "lines/s")
			if callers == 1 {
				single = rate
			} else {
				b.ReportMetric(rate/single, "times-one-caller")
			}
		})
	}
}

// BenchmarkCertificate records whole lives of certificates, each from its intent to its
// publication, with the disk's syncs shared by many.
func BenchmarkCertificate(b *testing.B) {
	ca := newCA(b)
	j := open(b, b.TempDir(), Options{CA: ca.cert, MaxUnfinished: 1 << 30})
	lives := make([][3]Entry, b.N)
	for i := range lives {
		intent, signed, published := ca.lines(b, j.ID(), fmt.Sprint(i), time.Hour)
		lives[i] = [3]Entry{intent, signed, published}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for step := range 3 {
		var last *batch
		for _, life := range lives {
			started, err := j.start(life[step])
			must.OK(b, err)
			last = started
		}
		must.OK(b, last.wait(b.Context()))
	}
}

// More allocations than these would show that an entry is parsed or encoded twice.
func TestEncodeAllocates(t *testing.T) {
	const most = 100
	ca := newCA(t)
	intent, _, _ := ca.lines(t, "1a2b3c4d", "one", time.Hour)
	got := testing.AllocsPerRun(100, func() {
		if err := intent.check(); err != nil {
			t.Error(err)
		}
		if _, _, err := encodeEntry(intent); err != nil {
			t.Error(err)
		}
	})
	if got > most {
		t.Errorf("%.0f allocations for an intent; at most %d are expected", got, most)
	}
}
