package journal

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/asn1"
	"fmt"
	"maps"
	"slices"
	"time"
)

// A State is how far a request has come.
type State uint8

// The states of a request.
const (
	Unknown        State = iota // the journal knows nothing of it
	Intended                    // the bytes to be signed are known; they may have been signed
	HasCertificate              // signed, and not known to be published
	IsPublished                 // the API server took the certificate
	IsOrphaned                  // given up; there may be a certificate
	IsUnconfirmed               // signed, and unknown whether the API server took the certificate
)

// String is for people.
func (s State) String() string {
	return [...]string{"unknown", "intended", "signed", "published", "orphaned", "unconfirmed"}[s]
}

// A Record is what the journal knows of a request.
type Record struct {
	State State
	// Intent is whole while the request is neither published nor orphaned. Afterwards it holds
	// UID, Serial and TBS, and of an orphan without a certificate everything.
	Intent      Intent
	Certificate []byte    // DER; nil when there is none
	Intended    time.Time // when the intent was written; zero when the request is finished
	// Inherited reports whether the intent was in the journal already when it was opened.
	Inherited bool

	at     place
	sum    Hash
	intent lineRef // of the intent
	seq    uint64  // of the intent
}

// key names a request in the index: the first half of the SHA-256 of its UID.
type key [16]byte

func keyOf(uid string) key {
	sum := sha256.Sum256([]byte(uid))
	return key(sum[:16])
}

// A place is where a line begins.
type place struct{ file, offset uint32 }

// finished is what is remembered of a request that is published or orphaned: 36 bytes.
type finished struct {
	at       place   // of the line with the certificate, or of the intent when there is none
	sum      [8]byte // of the SHA-256 of that line
	serial   [8]byte // of the SHA-256 of the serial number
	expires  uint32  // seconds since 1970
	state    State
	unsigned bool // there is no certificate
}

// A ledger follows the requests from line to line. It is not safe for concurrent use.
type ledger struct {
	id    ID // empty before the first line
	index map[key]finished
	open  map[key]*Record
	// what is not in memory; nil: everything is, or was recalled
	older func(key) (finished, bool, error)
	// the latest time of a line since the last file was sealed
	latest time.Time
	counts Counts
	// accepted are the heads of the lines of the kind rollback.
	accepted []Head
	rotation *Rotation // the last one; nil: there was none
	opened   bool      // the journal is open: what is applied from now on is this process's
}

// Counts are of lines.
type Counts struct {
	Intents     int `json:"intents"`
	Signed      int `json:"signed"`
	Published   int `json:"published"` // without those that were published again
	Orphaned    int `json:"orphaned"`
	Unconfirmed int `json:"unconfirmed"`
	Probes      int `json:"probes"`
	Checkpoints int `json:"checkpoints"`
	Opened      int `json:"opened"`
	Rollbacks   int `json:"rollbacks"`
	Rotations   int `json:"rotations"`
}

// ByKind returns the counts by the kind of line.
func (c Counts) ByKind() map[Kind]int {
	return map[Kind]int{
		KindOpened: c.Opened, KindIntent: c.Intents, KindSigned: c.Signed,
		KindPublished: c.Published,
		KindOrphaned:  c.Orphaned, KindUnconfirmed: c.Unconfirmed, KindProbe: c.Probes,
		KindCheckpoint: c.Checkpoints, KindRollback: c.Rollbacks,
		KindRotation: c.Rotations,
	}
}

func newLedger() *ledger {
	return &ledger{index: map[key]finished{}, open: map[key]*Record{}}
}

// find returns what is known of a request: a record, or what is left of it. What it finds outside
// the memory is in memory then.
func (l *ledger) find(uid string) (record *Record, f finished, known bool, err error) {
	k := keyOf(uid)
	if record := l.open[k]; record != nil {
		return record, finished{}, true, nil
	}
	f, known = l.index[k]
	if known || l.older == nil || uid == "" {
		return nil, f, known, nil
	}
	if f, known, err = l.older(k); known && err == nil {
		l.index[k] = f
	}
	return nil, f, known, err
}

// remembers reports whether the request is in memory.
func (l *ledger) remembers(k key) bool {
	_, finished := l.index[k]
	return finished || l.open[k] != nil
}

// header says where a file ends, and what is unfinished there.
func (l *ledger) header(number uint32, size, last int64, before, after Head) indexHeader {
	h := indexHeader{
		File: number, Journal: l.id, Size: size, Last: last, Latest: l.latest, Before: before,
		After: after, Counts: l.counts, Accepted: l.accepted, Rotation: l.rotation,
	}
	for _, r := range l.unfinished() {
		lines := openLines{Intent: r.intent}
		if r.State == HasCertificate {
			lines.Signed = &lineRef{r.at.file, r.at.offset, r.sum}
		}
		h.Open = append(h.Open, lines)
	}
	l.latest = time.Time{}
	return h
}

func (l *ledger) unfinished() []Record {
	var all []Record
	for record := range maps.Values(l.open) {
		all = append(all, *record)
	}
	slices.SortFunc(all, func(a, b Record) int { return cmp.Compare(a.seq, b.seq) })
	return all
}

// check returns nil if the entry follows from what is known.
func (l *ledger) check(e Entry, now time.Time) error {
	record, f, known, err := l.find(requestOf(e))
	if err != nil {
		return err
	}
	switch e := e.(type) {
	case Opened:
		if l.id != "" && e.Journal != l.id {
			return fmt.Errorf("%w: this is the journal %s, and not %s", ErrConflict, l.id,
				e.Journal)
		}
	case Intent:
		return l.checkIntent(e, record, f, known, now)
	case Signed:
		return checkSigned(e, record)
	case Published:
		return checkPublished(e, record, f, known)
	case Orphaned:
		if record == nil || record.Intent.Serial != e.Serial {
			return conflict(e.UID, "there is no unfinished certificate with the serial number %s "+
				"to be orphaned", e.Serial)
		}
	case Unconfirmed:
		if record == nil || record.State != HasCertificate || record.Intent.Serial != e.Serial {
			return conflict(e.UID, "no signed and unfinished certificate has the serial number %s",
				e.Serial)
		}
	}
	return nil
}

// fits returns nil if the entry follows from what is known, however long ago that was.
func (l *ledger) fits(e Entry) error { return l.check(e, time.Time{}) }

func (l *ledger) checkIntent(e Intent, record *Record, f finished, known bool,
	now time.Time) error {
	switch {
	case !l.id.Carries(e.Serial):
		return conflict(e.UID, "the serial number %s does not begin with the journal's id %s",
			e.Serial, l.id)
	case record != nil:
		return conflict(e.UID, "there is an intent already, with the serial number %s",
			record.Intent.Serial)
	case known && !(e.Anew && f.state == IsOrphaned) && !f.forgettable(now):
		return conflict(e.UID, "it is %s already: one request has one certificate", f.state)
	}
	return nil
}

func checkSigned(e Signed, record *Record) error {
	switch {
	case record == nil:
		return conflict(e.UID, "a certificate without an intent")
	case record.State != Intended:
		return conflict(e.UID, "there is a certificate already, with the serial number %s",
			record.Intent.Serial)
	case record.Intent.Serial != e.Serial:
		return conflict(e.UID, "the serial number is %s, but that of the intent is %s", e.Serial,
			record.Intent.Serial)
	}
	if tbs, err := tbsOf(e.Certificate); err != nil || !bytes.Equal(tbs, record.Intent.TBS) {
		return conflict(e.UID, "what was signed is not what the intent says")
	}
	return nil
}

func checkPublished(e Published, record *Record, f finished, known bool) error {
	switch {
	case record != nil && record.State == HasCertificate && record.Intent.Serial == e.Serial:
		return nil
	// published again, or no orphan any more
	case record == nil && known && !f.unsigned && f.serial == short(e.Serial):
		return nil
	}
	return conflict(e.UID, "there is no certificate with the serial number %s to be published",
		e.Serial)
}

func conflict(uid, format string, args ...any) error {
	return fmt.Errorf("%w: request %q: %s", ErrConflict, uid, fmt.Sprintf(format, args...))
}

// apply takes a line that begins at a place and has the hash.
func (l *ledger) apply(line Line, at place, sum Hash) error {
	if err := l.check(line.Entry, line.Time); err != nil {
		return err
	}
	if line.Time.After(l.latest) {
		l.latest = line.Time
	}
	switch e := line.Entry.(type) {
	case Opened:
		l.id = e.Journal
		l.counts.Opened++
	case Intent:
		delete(l.index, keyOf(e.UID))
		l.open[keyOf(e.UID)] = &Record{State: Intended, Intent: e, Intended: line.Time,
			Inherited: !l.opened, intent: lineRef{at.file, at.offset, sum}, at: at, sum: sum,
			seq: line.Seq}
		l.counts.Intents++
	case Signed:
		record := *l.open[keyOf(e.UID)] // a copy: others may be reading the record
		record.State, record.Certificate, record.at, record.sum = HasCertificate, e.Certificate,
			at, sum
		l.open[keyOf(e.UID)] = &record
		l.counts.Signed++
	case Published:
		l.finish(e.UID, IsPublished)
	case Orphaned:
		l.finish(e.UID, IsOrphaned)
		l.counts.Orphaned++
	case Unconfirmed:
		l.finish(e.UID, IsUnconfirmed)
		l.counts.Unconfirmed++
	case Probe:
		l.counts.Probes++
	case Checkpoint:
		l.counts.Checkpoints++
	case Rollback:
		l.counts.Rollbacks++
		l.accepted = append(l.accepted, Head{e.HeadSeq, e.HeadSHA256})
	case Rotation:
		l.counts.Rotations++
		l.rotation = &e
	}
	return nil
}

// finish moves a request to the index.
func (l *ledger) finish(uid string, state State) {
	k := keyOf(uid)
	f := l.index[k]
	if record := l.open[k]; record != nil {
		f = finished{
			at: record.at, sum: [8]byte(record.sum[:8]), serial: short(record.Intent.Serial),
			expires: expiryOf(record.Intent), unsigned: record.State == Intended,
		}
		delete(l.open, k)
	}
	if state == IsPublished && f.state != IsPublished {
		l.counts.Published++
	}
	f.state = state
	l.index[k] = f
}

// forgettable reports whether earlier versions may have forgotten the request at that time, and
// have issued a second certificate for it.
func (f finished) forgettable(now time.Time) bool {
	return now.Add(-KeepExpired).After(time.Unix(int64(f.expires), 0))
}

// expiryOf returns when the certificate of an intent expires, in seconds since 1970. The intent was
// parsed when it was taken, so only its validity is read here (RFC 5280, section 4.1).
func expiryOf(i Intent) uint32 {
	const place = 4 // behind version, serial number, signature and issuer
	var parts []asn1.RawValue
	var validity struct{ NotBefore, NotAfter time.Time }
	if _, err := asn1.Unmarshal(i.TBS, &parts); err != nil || len(parts) <= place {
		return 0
	}
	if _, err := asn1.Unmarshal(parts[place].FullBytes, &validity); err != nil {
		return 0
	}
	return seconds(validity.NotAfter)
}

func short(serial string) [8]byte {
	sum := sha256.Sum256([]byte(serial))
	return [8]byte(sum[:8])
}

// seconds fits a time into 32 bits, up to the year 2106.
func seconds(t time.Time) uint32 {
	return uint32(min(max(t.Unix(), 0), 1<<32-1))
}
