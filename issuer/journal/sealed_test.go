package journal

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hsm-signer/internal/must"
)

// later is a clock by which all that was just written is older than an hour.
func later() time.Time { return time.Now().Add(2 * RecentWindow) }

// small are options with which a file has few lines, and the sealed ones are taken by their index.
func small(ca *testCA) Options { return Options{CA: ca.cert, FileSize: 4000, now: later} }

// A history is a journal with requests in every state, in several files.
type history struct {
	dir    string
	states map[string]State
	signed map[string]Signed
}

func newHistory(t testing.TB, ca *testCA) history {
	t.Helper()
	h := history{t.TempDir(), map[string]State{}, map[string]Signed{}}
	j := open(t, h.dir, Options{CA: ca.cert, FileSize: 4000})
	head := j.Head()
	for n := range 30 {
		uid := fmt.Sprint("uid-", n)
		intent, signed, published := ca.lines(t, j.ID(), uid, time.Hour)
		put(t, j, intent)
		switch h.states[uid] = Intended; {
		case n%10 == 7:
			put(t, j, Orphaned{uid, intent.Serial, "why"})
			h.states[uid] = IsOrphaned
			continue
		case n%10 == 8:
			continue
		}
		put(t, j, signed)
		h.signed[uid], h.states[uid] = signed, HasCertificate
		switch n % 10 {
		case 5:
			put(t, j, Unconfirmed{uid, intent.Serial, "the request is gone"})
			h.states[uid] = IsUnconfirmed
		case 6:
		default:
			put(t, j, published)
			h.states[uid] = IsPublished
		}
	}
	put(t, j,
		Checkpoint{HeadSeq: head.Seq, HeadSHA256: head.SHA256,
			Algorithm: x509.PureEd25519.String()})
	closeNow(t, j)
	return h
}

// require requires that the journal knows each request.
func (h history) require(t testing.TB, j *Writer) {
	t.Helper()
	unfinished := 0
	for uid, state := range h.states {
		r := look(t, j, uid, state)
		if !bytes.Equal(r.Certificate, h.signed[uid].Certificate) || r.Intent.UID != uid {
			t.Errorf("%s: %+v", uid, r)
		}
		if state == Intended || state == HasCertificate {
			unfinished++
			if !r.Inherited || r.Intent.Name == "" || r.Intended.IsZero() {
				t.Errorf("%s: %+v", uid, r)
			}
		}
	}
	look(t, j, "never seen", Unknown)
	if n := len(j.Unpublished()); n != unfinished {
		t.Errorf("%d are unfinished; want %d", n, unfinished)
	}
}

// indexes returns the index files, by their number.
func indexes(t testing.TB, dir string) map[uint32][]byte {
	t.Helper()
	all := map[uint32][]byte{}
	count, err := countFiles(dir)
	must.OK(t, err)
	for number := uint32(1); number <= count; number++ {
		text, err := os.ReadFile(indexPath(dir, number))
		if err == nil {
			all[number] = text
		} else if number < count {
			t.Errorf("file %d has no index: %v", number, err)
		}
	}
	return all
}

// What is in sealed files is out of memory and still known: a request that comes back after a long
// time, as when etcd was restored, gets the same certificate, and never a second one.
func TestSealedFilesAreKnown(t *testing.T) {
	ca := newCA(t)
	h := newHistory(t, ca)
	before := verify(t, h.dir, ca)
	j := open(t, h.dir, small(ca))
	if len(j.segments) < 5 || len(j.ledger.index) > 6 || len(j.Recent()) != 0 {
		t.Errorf("%d sealed files, %d requests in memory, %d recent", len(j.segments),
			len(j.ledger.index), len(j.Recent()))
	}
	before.Counts.Opened++
	if s := j.Summary(); s.Counts != before.Counts || s.Unfinished != before.Unfinished ||
		s.Journal != before.Journal {
		t.Errorf("%+v; want %+v", s, before)
	}
	h.require(t, j)
	if used := j.Usage(); used.Requests != len(h.states) {
		t.Errorf("%+v", used)
	}
	for uid, signed := range h.signed {
		second, _, _ := ca.lines(t, j.ID(), uid, time.Hour)
		if err := j.Append(t.Context(), second); !errors.Is(err, ErrConflict) {
			t.Errorf("%s: a second certificate: %v", uid, err)
		}
		put(t, j, Published{uid, signed.Serial})
		h.states[uid] = IsPublished
	}
	for n := range 10 {
		issue(t, ca, j, fmt.Sprint("more-", n))
	}
	<-j.rechecked
	if err := j.State(); err != nil {
		t.Error(err)
	}
	closeNow(t, j)
	s := verify(t, h.dir, ca)
	j = open(t, h.dir, small(ca))
	h.require(t, j)
	if got := j.Summary(); got.Counts.Published != s.Counts.Published ||
		got.Counts.Intents != s.Counts.Intents {
		t.Errorf("%+v; want %+v", got, s)
	}
}

// An orphan whose request may have a new certificate has one, also when all is in sealed files.
func TestAnewFromASealedFile(t *testing.T) {
	ca := newCA(t)
	h := newHistory(t, ca)
	j := open(t, h.dir, small(ca))
	anew, signed, published := ca.lines(t, j.ID(), "uid-7", time.Hour)
	if err := j.Append(t.Context(), anew); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
	anew.Anew = true
	put(t, j, anew, signed, published)
	for n := range 5 {
		issue(t, ca, j, fmt.Sprint("more-", n))
	}
	closeNow(t, j)
	j = open(t, h.dir, small(ca))
	if r := look(t, j, "uid-7", IsPublished); !bytes.Equal(r.Certificate, signed.Certificate) {
		t.Errorf("%+v", r)
	}
	verify(t, h.dir, ca)
}

// An index that is missing, damaged or of another journal is made again, in the same bytes.
func TestIndexesAreMadeAgain(t *testing.T) {
	ca := newCA(t)
	h := newHistory(t, ca)
	want := indexes(t, h.dir)
	other := indexes(t, newHistory(t, ca).dir)
	for name, change := range map[string]func(path string, text []byte) error{
		"missing": func(path string, _ []byte) error { return os.Remove(path) },
		"empty":   func(path string, _ []byte) error { return os.WriteFile(path, nil, 0o600) },
		"cut": func(path string, text []byte) error {
			return os.WriteFile(path, text[:len(text)-40], 0o600)
		},
		"of another journal": func(path string, _ []byte) error {
			return os.WriteFile(path, other[2], 0o600)
		},
		"of another file": func(path string, _ []byte) error {
			return os.WriteFile(path, want[3], 0o600)
		},
		"one bit of an entry": func(path string, text []byte) error {
			return os.WriteFile(path, flip(text, len(text)-60), 0o600)
		},
		"one bit of the start": func(path string, text []byte) error {
			return os.WriteFile(path, flip(text, 20), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			must.OK(t, change(indexPath(h.dir, 2), want[2]))
			j := open(t, h.dir, small(ca))
			h.require(t, j)
			if n := len(j.segments); n != len(indexes(t, h.dir)) {
				t.Errorf("%d segments", n)
			}
			closeNow(t, j)
			if got := indexes(t, h.dir)[2]; !bytes.Equal(got, want[2]) {
				t.Errorf("it is not the same one:\n%.200q\n%.200q", got, want[2])
			}
			verify(t, h.dir, ca)
		})
	}
}

func flip(text []byte, at int) []byte {
	changed := bytes.Clone(text)
	changed[at] ^= 1
	return changed
}

// A sealed file that was changed is found while the journal is open; then nothing more is signed,
// and the next start names the line.
func TestAChangedSealedFileStopsSigning(t *testing.T) {
	ca := newCA(t)
	h := newHistory(t, ca)
	// which reads files that are as short as these: it is changed afterwards
	j := open(t, h.dir, small(ca))
	<-j.rechecked
	var text []byte
	at, number := -1, uint32(0)
	for at < 0 {
		number++
		var err error
		if text, err = os.ReadFile(filePath(h.dir, number)); err != nil {
			t.Fatal(err)
		}
		// the last digit of the hash of the line before
		at = bytes.Index(text, []byte(`","kind":"published"`)) - 1
	}
	changed := bytes.Clone(text)
	if changed[at]++; text[at] == '9' || text[at] == 'f' {
		changed[at] = '0'
	}
	must.OK(t, os.WriteFile(filePath(h.dir, number), changed, 0o600))
	line := bytes.Count(text[:at], []byte("\n")) + 1
	j.rechecked = make(chan struct{})
	j.recheck(t.Context(), j.segments)
	if _, err := os.Stat(indexPath(h.dir, number)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the next start would believe the index: %v", err)
	}
	var fault *Fault
	if err := j.State(); !errors.Is(err, ErrDamaged) || !errors.As(err, &fault) ||
		!isFault(fault, int(number), line) {
		t.Errorf("state: %v; want line %d", err, line)
	}
	if err := j.Ready(); !errors.Is(err, ErrDamaged) {
		t.Errorf("ready: %v", err)
	}
	intent, _, _ := ca.lines(t, j.ID(), "new", time.Hour)
	for _, e := range []Entry{intent, Probe{When: ProbeReady}} {
		if err := j.Append(t.Context(), e); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", e.Kind(), err)
		}
	}
	closeNow(t, j)
	if _, err := Open(h.dir, small(ca)); !isFault(err, int(number), line) {
		t.Errorf("the next start: %v", err)
	}
}

// What is read of a sealed file is verified each time; what cannot be read is not taken for
// unknown.
func TestDamageOfWhatIsLookedUp(t *testing.T) {
	ca := newCA(t)
	for name, change := range map[string]func(t *testing.T, dir string){
		"the line": func(t *testing.T, dir string) {
			text, err := os.ReadFile(filePath(dir, 1))
			must.OK(t, err)
			at := bytes.Index(text, []byte(`"certificate":"`)) + 40
			must.OK(t, os.WriteFile(filePath(dir, 1), flip(text, at), 0o600))
		},
		"the index": func(t *testing.T, dir string) {
			text := indexes(t, dir)[1]
			clear(text[bytes.IndexByte(text, '\n')+1:])
			must.OK(t, os.WriteFile(indexPath(dir, 1), text, 0o600))
		},
		"the file is gone": func(t *testing.T, dir string) {
			must.OK(t, os.Remove(filePath(dir, 1)))
		},
		"the index is gone": func(t *testing.T, dir string) {
			must.OK(t, os.Remove(indexPath(dir, 1)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHistory(t, ca)
			j := open(t, h.dir, small(ca))
			<-j.rechecked
			change(t, h.dir)
			second, _, _ := ca.lines(t, j.ID(), "uid-0", time.Hour)
			if err := j.Append(t.Context(), second); err == nil {
				t.Error("a second certificate")
			}
			if r, err := j.Lookup("uid-0"); err == nil {
				t.Errorf("looked up: %+v", r)
			}
			if err := j.Append(t.Context(), second); err == nil {
				t.Error("a second certificate after the look-up")
			}
			if err := j.State(); !errors.Is(err, ErrDamaged) {
				t.Errorf("state: %v", err)
			}
		})
	}
}

// Where an index cannot be written, its entries stay in memory.
func TestAnIndexThatCannotBeWritten(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	for number := uint32(1); number < 20; number++ {
		must.OK(t, os.MkdirAll(filepath.Join(indexPath(dir, number)+".new", "in the way"),
			0o700))
	}
	j := open(t, dir, small(ca))
	for n := range 6 {
		issue(t, ca, j, fmt.Sprint("uid-", n))
	}
	if len(j.segments) < 2 || j.segments[0].table == nil {
		t.Fatalf("%d segments", len(j.segments))
	}
	for range 2 {
		for n := range 6 {
			look(t, j, fmt.Sprint("uid-", n), IsPublished)
		}
		closeNow(t, j)
		j = open(t, dir, small(ca))
	}
	verify(t, dir, ca)
}

// An earlier version may have forgotten a request whose certificate had expired long ago, and have
// issued a second one: such a journal opens and verifies.
func TestASecondCertificateOfAnEarlierVersion(t *testing.T) {
	ca := newCA(t)
	const id = ID("1a2b3c4d")
	one, oneSigned, onePublished := ca.lines(t, id, "one", -100*24*time.Hour)
	again, againSigned, againPublished := ca.lines(t, id, "one", time.Hour)
	dir := forge(t, Opened{Journal: id}, one, oneSigned, onePublished, again, againSigned,
		againPublished)
	for range 2 {
		j := open(t, dir, Options{CA: ca.cert, FileSize: 1, now: later})
		if r := look(t, j, "one", IsPublished); !bytes.Equal(r.Certificate,
			againSigned.Certificate) {
			t.Errorf("%+v", r)
		}
		issue(t, ca, j, fmt.Sprint(time.Now().UnixNano()))
		third, _, _ := ca.lines(t, j.ID(), "one", time.Hour)
		if err := j.Append(t.Context(), third); !errors.Is(err, ErrConflict) {
			t.Errorf("a third: %v", err)
		}
		closeNow(t, j)
	}
	verify(t, dir, ca)
}
