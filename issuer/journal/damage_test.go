package journal

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"hsm-signer/internal/must"
)

// written makes a journal with the lives of some requests and returns its only file.
func written(t *testing.T, ca *testCA, dir string, uids ...string) []byte {
	t.Helper()
	j := open(t, dir, Options{CA: ca.cert})
	issue(t, ca, j, uids...)
	closeNow(t, j)
	return must.Value(os.ReadFile(filePath(dir, 1)))(t)
}

func directory(t *testing.T, files ...[]byte) string {
	t.Helper()
	dir := t.TempDir()
	for i, text := range files {
		must.OK(t, os.WriteFile(filePath(dir, uint32(i)+1), text, 0o600))
	}
	return dir
}

// A power cut can leave the last lines cut at any byte: the journal opens, keeps every whole line,
// and says what it has moved away.
func TestTornAtEveryByte(t *testing.T) {
	ca := newCA(t)
	text := written(t, ca, t.TempDir(), "one", "two")
	lines := bytes.SplitAfter(text, []byte("\n"))
	lines = lines[:len(lines)-1]
	from := len(text) - len(lines[len(lines)-1]) - len(lines[len(lines)-2]) - 1
	dir := directory(t)
	for cut := from; cut < len(text); cut++ {
		must.OK(t, os.WriteFile(filePath(dir, 1), text[:cut], 0o600))
		whole := bytes.LastIndexByte(text[:cut], '\n') + 1
		torn := cut - whole
		if s := verify(t, dir, ca); s.Torn != torn ||
			s.Head.Seq != uint64(bytes.Count(text[:cut], []byte("\n"))) {
			t.Fatalf("cut at %d: %+v", cut, s)
		}
		j := open(t, dir, Options{CA: ca.cert})
		r := j.Repaired()
		closeNow(t, j)
		checkRepair(t, dir, r, text[whole:cut])
		if s := verify(t, dir, ca); s.Torn != 0 || s.Counts.Opened != 2 {
			t.Fatalf("cut at %d: %+v", cut, s)
		}
	}
}

func checkRepair(t *testing.T, dir string, r *Repair, torn []byte) {
	t.Helper()
	if (r != nil) != (len(torn) > 0) {
		t.Fatalf("%d bytes are torn: %v", len(torn), r)
	}
	if r == nil {
		return
	}
	side, err := os.ReadFile(filepath.Join(dir, r.MovedTo))
	if err != nil || !bytes.Equal(side, torn) || r.SHA256 != hash(torn) || r.Bytes != len(torn) {
		t.Fatalf("%v: %v", r, err)
	}
	now, err := os.ReadFile(filePath(dir, 1))
	if err != nil || !bytes.Contains(now, []byte(r.MovedTo)) {
		t.Fatalf("the journal does not tell of it: %v", err)
	}
	must.OK(t, os.Remove(filepath.Join(dir, r.MovedTo)))
}

// Pages that were not written before a power cut read as zeros, also with others behind them.
func TestTornWithPagesThatWereNeverWritten(t *testing.T) {
	ca := newCA(t)
	text := written(t, ca, t.TempDir(), "one", "two")
	cut := bytes.LastIndexByte(text[:len(text)-1], '\n') + 1
	for name, rest := range map[string][]byte{
		"zeros":             make([]byte, 5000),
		"zeros and a line":  append(make([]byte, 100), text[cut:]...),
		"half a line zeros": append(append(text[cut:cut+30:cut+30], make([]byte, 50)...), '\n'),
	} {
		dir := directory(t, append(text[:cut:cut], rest...))
		j := open(t, dir, Options{CA: ca.cert})
		if r := j.Repaired(); r == nil || r.Bytes != len(rest) {
			t.Errorf("%s: %v", name, r)
		}
		verify(t, dir, ca)
	}
}

// A new file that is empty, or a first line that is torn, is what a power cut leaves too.
func TestTornAtTheBeginningOfAFile(t *testing.T) {
	ca := newCA(t)
	text := written(t, ca, t.TempDir(), "one")
	for name, dir := range map[string]string{
		"empty": directory(t, nil), "first line": directory(t, text[:20]),
		"second file":      directory(t, text, nil),
		"second file torn": directory(t, text, []byte(`{"seq"`)),
	} {
		j := open(t, dir, Options{CA: ca.cert})
		issue(t, ca, j, "two")
		verify(t, dir, ca)
		if torn := name == "first line" ||
			name == "second file torn"; torn != (j.Repaired() != nil) {
			t.Errorf("%s: %v", name, j.Repaired())
		}
	}
	if _, err := Open(directory(t, text[:len(text)-5], text), Options{CA: ca.cert}); !isFault(err,
		1, 5) && !isFault(err, 1, 4) {
		t.Errorf("torn, and a file follows: %v", err)
	}
}

func isFault(err error, file, line int) bool {
	var f *Fault
	return errors.As(err, &f) && f.File == fmt.Sprintf(fileFormat, file) && f.Line == line
}

// A byte that is changed anywhere but in the last line is found, and the line is named.
func TestAChangedByteIsNamed(t *testing.T) {
	ca := newCA(t)
	text := written(t, ca, t.TempDir(), "one", "two", "three")
	last := bytes.LastIndexByte(text[:len(text)-1], '\n') + 1
	dir := directory(t)
	for at := 0; at < last; at += 7 {
		changed := bytes.Clone(text)
		changed[at] ^= 1
		must.OK(t, os.WriteFile(filePath(dir, 1), changed, 0o600))
		line := bytes.Count(text[:at], []byte("\n")) + 1
		if _, err := Verify(dir, VerifyOptions{CAs: []*x509.Certificate{ca.cert}}); !isFault(err, 1,
			line) {
			t.Errorf("byte %d, line %d, %q: %v", at, line, text[max(0, at-20):at+1], err)
		}
		if _, err := Open(dir, Options{CA: ca.cert}); !isFault(err, 1, line) {
			t.Errorf("Open: byte %d, line %d: %v", at, line, err)
		}
		if now, err := os.ReadFile(filePath(dir, 1)); err != nil || !bytes.Equal(now, changed) {
			t.Fatalf("Open has changed the file: %v", err)
		}
	}
}

// A zero byte, as of a page that the disk has lost, is no power cut when lines follow that were
// synced after it.
func TestALostPageIsNamed(t *testing.T) {
	ca := newCA(t)
	text := written(t, ca, t.TempDir(), "one", "two", "three")
	lines := bytes.SplitAfter(text, []byte("\n"))
	lines = lines[:len(lines)-1]
	at := 0
	for i, line := range lines {
		lost := bytes.Clone(text)
		lost[at+len(line)/2] = 0
		at += len(line)
		dir := directory(t, lost)
		_, verified := Verify(dir, VerifyOptions{CAs: []*x509.Certificate{ca.cert}})
		j, err := Open(dir, Options{CA: ca.cert})
		switch {
		case i == len(lines)-1: // nobody can tell it from a torn end, except for the witnesses
			if verified != nil || err != nil {
				t.Errorf("the last line: %v; %v", verified, err)
			}
		case !isFault(verified, 1, i+1) || !isFault(err, 1, i+1):
			t.Errorf("line %d: %v; %v", i+1, verified, err)
		}
		if err == nil {
			closeNow(t, j)
		}
	}
}

// A disk on which nothing can be synced gets a first line at each try to open; a power cut may
// leave any part of them.
func TestTornAmongTriesToOpen(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	text := written(t, ca, dir, "one")
	o := Options{CA: ca.cert, openFile: inject(testFile{sync: func(file) error {
		return syscall.EIO
	}})}
	for range 3 {
		if _, err := Open(dir, o); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
	}
	now, err := os.ReadFile(filePath(dir, 1))
	if err != nil || bytes.Count(now[len(text):], []byte("\n")) != 3 {
		t.Fatalf("%q: %v", now[len(text):], err)
	}
	clear(now[len(text):][:100])
	j := open(t, directory(t, now), Options{CA: ca.cert})
	if r := j.Repaired(); r == nil || r.Bytes != len(now)-len(text) {
		t.Errorf("%v", r)
	}
}

// forge writes a journal whose chain is right.
func forge(t *testing.T, entries ...Entry) string {
	t.Helper()
	var b batch
	var head Head
	var err error
	for _, e := range entries {
		if head, err = b.put(head, time.Now(), e); err != nil {
			t.Fatal(err)
		}
	}
	return directory(t, b.bytes)
}

// put encodes an entry and puts it behind the head.
func (b *batch) put(head Head, now time.Time, e Entry) (Head, error) {
	e, body, err := encodeEntry(e)
	if err != nil {
		return head, err
	}
	return b.add(head, now, e, body)
}

// Whoever can write the journal can make a chain; what it says must still be true.
func TestALyingLineIsNamed(t *testing.T) {
	ca := newCA(t)
	const id = ID("1a2b3c4d")
	opened := Opened{Journal: id}
	one, oneSigned, onePublished := ca.lines(t, id, "one", time.Hour)
	again, againSigned, _ := ca.lines(t, id, "one", time.Hour)
	foreign, foreignSigned, _ := newCA(t).lines(t, id, "foreign", time.Hour)
	same := one
	same.UID = "two"
	for name, c := range map[string]struct {
		line    int
		words   string
		entries []Entry
	}{
		"another CA": {3, "not signed by the CA", []Entry{opened, foreign, foreignSigned}},
		"no intent":  {2, "without an intent", []Entry{opened, oneSigned}},
		"other bytes": {3, "not what the intent says",
			[]Entry{opened, one,
				Signed{UID: "one", Serial: one.Serial, Certificate: againSigned.Certificate}}},
		"two certificates":     {4, "already", []Entry{opened, one, oneSigned, oneSigned}},
		"two intents":          {3, "already", []Entry{opened, one, again}},
		"a serial number":      {3, "there twice", []Entry{opened, one, same}},
		"published twice over": {5, "already", []Entry{opened, one, oneSigned, onePublished, again}},
		"no certificate":       {2, "no certificate", []Entry{opened, onePublished}},
		"another journal":      {2, "this is the journal", []Entry{opened, Opened{Journal: "0a2b3c4d"}}},
		"no beginning":         {1, "first line", []Entry{Probe{When: ProbeReady}}},
		"checkpoint": {2, "checkpoint",
			[]Entry{opened, Checkpoint{HeadSeq: 1, Algorithm: "ECDSA-SHA256"}}},
	} {
		_, err := Verify(forge(t, c.entries...), VerifyOptions{CAs: []*x509.Certificate{ca.cert}})
		if !isFault(err, 1, c.line) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Verify(t.TempDir(), VerifyOptions{}); !isFault(err, 1, 0) {
		t.Errorf("an empty directory: %v", err)
	}
}

// An end that is cut off cleanly shows only to a witness.
func TestAWitnessSeesThatTheEndIsCutOff(t *testing.T) {
	ca := newCA(t)
	text := written(t, ca, t.TempDir(), "one", "two")
	cas := []*x509.Certificate{ca.cert}
	whole := directory(t, text)
	s := verify(t, whole, ca)
	seen, err := ParseHead(s.Head.String())
	if err != nil || seen != s.Head {
		t.Fatal(seen, err)
	}
	if _, err := Verify(whole, VerifyOptions{CAs: cas, Witnessed: []Head{seen}}); err != nil {
		t.Error(err)
	}
	last := bytes.LastIndexByte(text[:len(text)-1], '\n') + 1
	for _, cut := range []int{last, last + 10} {
		_, err := Verify(directory(t, text[:cut]), VerifyOptions{CAs: cas, Witnessed: []Head{seen}})
		if !isFault(err, 1, int(seen.Seq)) || !strings.Contains(err.Error(), "cut off") {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	other := Head{3, Hash{1}}
	if _, err := Verify(whole,
		VerifyOptions{CAs: cas, Witnessed: []Head{other, seen}}); !isFault(err, 1, 3) {
		t.Error(err)
	}
	for _, bad := range []string{"", "1", "x:" + strings.Repeat("0", 64), "1:00",
		"1:" + strings.Repeat("g", 64)} {
		if _, err := ParseHead(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestCheckpointsAreVerified(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.OK(t, err)
	j := open(t, dir, Options{CA: ca.cert})
	issue(t, ca, j, "one")
	head := j.Head()
	put(t, j, Probe{When: ProbeReady})
	digest := sha256.Sum256(CheckpointText(j.ID(), head))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	must.OK(t, err)
	put(t, j,
		Checkpoint{HeadSeq: head.Seq, HeadSHA256: head.SHA256,
			Algorithm: x509.ECDSAWithSHA256.String(), Signature: signature})
	o := VerifyOptions{CAs: []*x509.Certificate{ca.cert}, CheckpointKey: key.Public()}
	if s, err := Verify(dir, o); err != nil || s.Counts.Checkpoints != 1 {
		t.Errorf("%+v %v", s, err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.OK(t, err)
	o.CheckpointKey = other.Public()
	if _, err := Verify(dir, o); !isFault(err, 1, 6) {
		t.Errorf("another key's: %v", err)
	}
}

func TestList(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	j := open(t, dir, Options{CA: ca.cert, FileSize: 3000})
	issue(t, ca, j, "a", "b")
	orphan, orphanSigned, _ := ca.lines(t, j.ID(), "orphan", time.Hour)
	anew, anewSigned, anewPublished := ca.lines(t, j.ID(), "orphan", time.Hour)
	anew.Anew = true
	late, lateSigned, _ := ca.lines(t, j.ID(), "late", 48*time.Hour)
	intended, _, _ := ca.lines(t, j.ID(), "intended", time.Hour)
	put(t, j, orphan, orphanSigned, Orphaned{"orphan", orphan.Serial, "why"}, late, lateSigned,
		intended, anew, anewSigned, anewPublished)
	gone, goneSigned, _ := ca.lines(t, j.ID(), "gone", time.Hour)
	unsigned, _, _ := ca.lines(t, j.ID(), "unsigned", time.Hour)
	former, formerSigned, _ := ca.lines(t, j.ID(), "former", time.Hour)
	put(t, j, gone, goneSigned, Unconfirmed{"gone", gone.Serial, "the request is gone"}, unsigned,
		Orphaned{"unsigned", unsigned.Serial, "the request is gone"})
	// as earlier versions wrote it
	put(t, j, former, formerSigned, Orphaned{"former", former.Serial, "the request is gone"})
	names := func(f Filter) (text string) {
		t.Helper()
		for i, err := range List(dir, f) {
			must.OK(t, err)
			text += fmt.Sprintf("%s/%s ", i.UID, i.State)
		}
		return text
	}
	if got := names(Filter{}); got != "a/published b/published orphan/orphaned orphan/published "+
		"late/signed gone/unconfirmed unsigned/orphaned former/unconfirmed " {
		t.Error(got)
	}
	if got := names(Filter{ExpiresAfter: time.Now().Add(2 * time.Hour)}); got != "late/signed " {
		t.Error(got)
	}
	if got := names(Filter{ExpiresBefore: time.Now().Add(-2 * time.Hour)}); got != "" {
		t.Error(got)
	}
	for range List(dir, Filter{}) {
		break
	}
	for _, err := range List(forge(t, Opened{Journal: "1a2b3c4d"}, lateSigned), Filter{}) {
		if !isFault(err, 1, 2) {
			t.Error(err)
		}
	}
}

func FuzzLine(f *testing.F) {
	ca := newCA(f)
	intent, signed, published := ca.lines(f, "1a2b3c4d", "one", time.Hour)
	intent.Requester.Username = "a\xffb\u2028<&>\"\\ufffd"
	for i, e := range []Entry{
		Opened{Journal: "1a2b3c4d", Repaired: &Repair{File: "x"}}, intent, signed, published,
		Orphaned{"one", "0A", "why\x00"}, Unconfirmed{"one", "0A", "why"},
		aProbe, Checkpoint{HeadSeq: 1, Algorithm: "ECDSA-SHA256"},
	} {
		e, _, err := encodeEntry(e)
		must.OK(f, err)
		raw, err := Line{Seq: uint64(i), Time: time.Now(), Entry: e}.encode()
		must.OK(f, err)
		if _, err := parseLine(raw); err != nil {
			f.Fatalf("%s: %v", raw, err)
		}
		f.Add(raw)
	}
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := parseLine(raw)
		if err != nil {
			return
		}
		again, err := l.encode()
		if err != nil || !bytes.Equal(again, raw) {
			t.Errorf("%q was read and is written as %q: %v", raw, again, err)
		}
	})
}

// Whatever a requester is called, its line can be read back.
func FuzzText(f *testing.F) {
	for _, text := range []string{"", "a\xff", "\u2028\ufffd", `\ufffd`, "\xed\xa0\x80",
		"<&>\x00\x7f"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, _, err := encodeEntry(Orphaned{UID: "u" + text, Serial: text, Why: text})
		must.OK(t, err)
		raw, err := Line{Seq: 1, Time: time.Now(), Entry: e}.encode()
		must.OK(t, err)
		l, err := parseLine(raw)
		if err != nil || l.Entry != e || utf8.ValidString(text) && l.Entry.(Orphaned).Why != text {
			t.Errorf("%q is read back as %+v: %v", text, l.Entry, err)
		}
	})
}

// What is read back of a finished request is what was written.
func TestAFinishedRequestThatWasChangedIsNotGivenOut(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	j := open(t, dir, Options{CA: ca.cert})
	intent, _, _ := ca.lines(t, j.ID(), "one", time.Hour)
	put(t, j, intent, Orphaned{"one", intent.Serial, "why"})
	text, err := os.ReadFile(filePath(dir, 1))
	must.OK(t, err)
	must.OK(t, os.WriteFile(filePath(dir, 1),
		bytes.Replace(text, []byte("csr-one"), []byte("csr-two"), 1), 0o600))
	if r, err := j.Lookup("one"); err == nil || !strings.Contains(err.Error(), "was changed") {
		t.Errorf("%+v %v", r, err)
	}
}

func TestAnOldCheckpointIsRefused(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	j := open(t, dir, Options{CA: ca.cert})
	head := j.Head()
	check := Checkpoint{HeadSeq: head.Seq, HeadSHA256: head.SHA256,
		Algorithm: x509.PureEd25519.String()}
	most := len(j.synced.recent) / 2
	for n := range most + 1 {
		if n == most {
			put(t, j, check) // the last that is taken
		}
		if _, err := j.start(Probe{When: ProbeReady}); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Append(t.Context(), check); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
	put(t, j, Probe{When: ProbeReady})
	verify(t, dir, ca)
}

// What a line says of its certificate must be what the certificate says, whatever the chain is.
func TestForgedNamesShowWithoutAnyKey(t *testing.T) {
	ca := newCA(t)
	one, oneSigned, onePublished := ca.lines(t, "1a2b3c4d", "one", time.Hour)
	two, twoSigned, twoPublished := ca.lines(t, "1a2b3c4d", "two", time.Hour)
	for name, c := range map[string]struct {
		names []string
		wrong bool
	}{
		"as the issuer does":   {[]string{`CN="two"`, "DNS:a.example"}, false},
		"without the quotes":   {[]string{"CN=two", "DNS:a.example"}, false},
		"another subject":      {[]string{"CN=one", "DNS:a.example"}, true},
		"another DNS name":     {[]string{"CN=two", "DNS:b.example"}, true},
		"one name more":        {[]string{"CN=two", "DNS:a.example", "DNS:b.example"}, true},
		"one name less":        {[]string{"CN=two"}, true},
		"in a different order": {[]string{"DNS:a.example", "CN=two"}, true},
		"no names":             {nil, true},
	} {
		two.Names = c.names
		dir := forge(t, Opened{Journal: "1a2b3c4d"}, one, oneSigned, onePublished, two, twoSigned,
			twoPublished)
		_, err := Verify(dir, VerifyOptions{CAs: []*x509.Certificate{ca.cert}})
		var fault *Fault
		if is := errors.As(err, &fault); is != c.wrong ||
			is && (fault.Line != 5 || !strings.Contains(err.Error(), "the names are")) {
			t.Errorf("%s: %v", name, err)
		}
		// which is for availability: nothing is signed by these names
		j, err := Open(dir, Options{CA: ca.cert})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		closeNow(t, j)
		for i, err := range List(dir, Filter{}) {
			if err != nil || len(i.Names) != 2 ||
				strings.ReplaceAll(i.Names[0], `"`, "") != "CN="+i.UID ||
				i.Names[1] != "DNS:a.example" {
				t.Errorf("%s: listed as %+v, %v", name, i, err)
			}
		}
	}
}

// Every kind of name reads as the issuer writes it.
func TestNamesOfACertificate(t *testing.T) {
	ca := newCA(t)
	uri, err := url.Parse("spiffe://a.example/b?c#d")
	must.OK(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), DNSNames: []string{"a.example", "*.b.example"},
		URIs: []*url.URL{uri}, EmailAddresses: []string{"a@b.example"},
		IPAddresses: []net.IP{{10, 0, 0, 1}, net.ParseIP("fd00::1")},
		Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
			{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: "A \"B\" é"},
			{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: strings.Repeat("x", 90)},
			{Type: asn1.ObjectIdentifier{1, 2, 3}, Value: "y"},
			{Type: asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25},
				Value: asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte("example")}},
		}},
	}, ca.cert, ca.key.Public(), ca.key)
	must.OK(t, err)
	tbs, err := tbsOf(der)
	must.OK(t, err)
	want := []string{
		`O="A \"B\" \u00e9"`, `CN="` + strings.Repeat("x", 80) + `"...`, `1.2.3="y"`,
		`DC="example"`,
		"DNS:a.example", "DNS:*.b.example", "IP:10.0.0.1", "IP:fd00::1",
		"URI:spiffe://a.example/b?c#d", "email:a@b.example",
	}
	if err := checkNames(Intent{Names: want, TBS: tbs}); err != nil {
		t.Error(err)
	}
	for i := range want {
		if err := checkNames(Intent{Names: slices.Delete(slices.Clone(want), i, i+1),
			TBS: tbs}); err == nil {
			t.Errorf("%s is missing and not missed", want[i])
		}
	}
}

// What vouches for the chain, and for how much of it, is counted.
func TestWhatIsVouchedFor(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	j := open(t, dir, Options{CA: ca.cert})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.OK(t, err)
	want := func(what string, unvouched uint64, o VerifyOptions) {
		t.Helper()
		o.CAs = []*x509.Certificate{ca.cert}
		s, err := Verify(dir, o)
		if err != nil || s.Unvouched != unvouched ||
			s.VouchedAt.IsZero() != (unvouched == s.Head.Seq) {
			t.Errorf("%s: %d lines are vouched for by nothing, want %d; %v, %v", what, s.Unvouched,
				unvouched, s.VouchedAt, err)
		}
	}
	checkpoint := func(head Head) {
		t.Helper()
		sum := sha256.Sum256(CheckpointText(j.ID(), head))
		signature, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
		must.OK(t, err)
		put(t, j, Checkpoint{head.Seq, head.SHA256, "", x509.ECDSAWithSHA256.String(), signature})
	}
	withKey := VerifyOptions{CheckpointKey: key.Public()}
	issue(t, ca, j, "one")
	want("no checkpoint", 4, withKey)
	first := j.Head()
	checkpoint(first)
	want("a checkpoint of all", 0, withKey)
	want("no key", 5, VerifyOptions{})
	issue(t, ca, j, "two")
	want("lines behind it", 3, withKey)
	middle := j.Head()
	put(t, j, Probe{When: ProbeReady})
	want("a witness", 1, VerifyOptions{Witnessed: []Head{middle}})
	want("a witness that knows more than the checkpoint", 1,
		VerifyOptions{Witnessed: []Head{middle}, CheckpointKey: key.Public()})
	checkpoint(middle)
	want("a checkpoint of less than all", 1, withKey)
	checkpoint(first)
	want("an older checkpoint after a later one", 1, withKey)
}
