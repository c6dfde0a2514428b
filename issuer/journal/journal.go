// Package journal remembers what was signed.
//
// Duty: keep, on the disk of one node, an append-only journal of what the CA's key is about to
// sign, has signed, and the outcome; answer for each request what is known of it; and let
// an auditor verify all of it.
//
// Contract: a [Journal] exists from the start of the process and looks after itself: [Journal.Run]
// opens it, tries again while that fails, and closes it. An open journal is a [Writer]. A line for
// which [Writer.Append] returned nil is on the disk, synced, and stays in its place in the chain:
// each line holds the SHA-256 of the one before. An intent, with the whole to-be-signed
// certificate, comes before the signature; a certificate is taken only for its intent, with the
// same bytes, and after its signature was verified ([NewSigned]). One request has one certificate.
// After a failed write or sync nothing more is taken ([ErrBroken]) until the end of the journal was
// verified through a new descriptor; the failed one is never used again. What the disk holds that
// is not a journal's is an error that names file and line ([*Fault]), except for an unfinished end,
// as a power cut leaves it: that is moved into a file of its own, and [Writer.Repaired] and the
// journal itself report it.
//
// The hash chain makes tampering detectable only to someone who has a later hash: give
// [Writer.Head] to witnesses that the node's owner cannot change. The bytes of an intent that is
// read back come from the disk: compare them with a grant before they are signed.
//
// The package knows neither keys nor Kubernetes; it reads and writes one directory.
package journal

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"hsm-signer/policy"
)

// Why a line is not taken. Nothing may be signed on any error.
var (
	// ErrBroken says that a write or a sync has failed; [Writer.Ready] may repair it.
	ErrBroken = errors.New("the journal cannot be written")
	// ErrFull says that the disk has no room for new requests. Started requests can still be
	// finished.
	ErrFull = errors.New("the journal's disk is full: make room in STATE_DIR")
	// ErrLocked says that another process writes this journal.
	ErrLocked = errors.New("the journal is in use")
	// ErrSlow says that the disk has not answered for a while. It may yet.
	ErrSlow = errors.New("the journal's disk hangs")
	// ErrClosed says that the journal was closed.
	ErrClosed = errors.New("the journal is closed")
	// ErrBusy says that a line for the same request is being written.
	ErrBusy = errors.New("a line for this request is being written: ask again when it is")
	// ErrDamaged says that the disk does not hold any more what was written.
	ErrDamaged = errors.New("the journal was changed on the disk: \"audit verify\" names the line")
	// ErrConflict says that the line contradicts what the journal knows of the request.
	ErrConflict = errors.New("the journal knows otherwise")
	// ErrTooMany says that one of the limits of [Options] is reached.
	ErrTooMany = errors.New("the journal has reached its limit")
	// ErrTooManyUnfinished is the [ErrTooMany] that goes away when requests are published or given
	// up.
	ErrTooManyUnfinished = fmt.Errorf("%w of unfinished requests", ErrTooMany)
)

// Options say how a journal is kept. Zero values mean the defaults.
type Options struct {
	Version string            // of the program, for the journal's reader
	CA      *x509.Certificate // whose certificates are recorded
	Next    *x509.Certificate // the next CA, whose certificates are recorded too; nil: none

	FileSize int64 // bytes after which a new file is started: 64 MiB by default, 1 GiB at most
	// bytes kept free on the disk for finishing started requests: 4 MiB by default
	Reserve int64
	// requests that are remembered: 20,000,000 by default, of 4 bytes of memory each
	MaxRequests int
	// requests neither published nor orphaned: 10,000 by default, of about 4 KiB each
	MaxUnfinished int

	// For tests.
	now      func() time.Time
	openFile func(path string) (file, error)
}

// KeepExpired is how long after its certificate had expired earlier versions remembered a finished
// request at least. Nothing is forgotten now.
const KeepExpired = 30 * 24 * time.Hour

// The limits where [Options] name none.
const (
	DefaultMaxRequests   = 20_000_000
	DefaultMaxUnfinished = 10_000
)

// retryInterval is the time between two tries of [Writer.Ready] to reopen a broken journal.
const retryInterval = time.Second

// patience is how long the disk may take before [Writer.Ready] says [ErrSlow].
const patience = 5 * time.Second

func (o Options) withDefaults() (Options, error) {
	set := func(to *int64, fallback int64) {
		if *to == 0 {
			*to = fallback
		}
	}
	requests, unfinished := int64(o.MaxRequests), int64(o.MaxUnfinished)
	set(&o.FileSize, 64<<20)
	set(&o.Reserve, 4<<20)
	set(&requests, DefaultMaxRequests)
	set(&unfinished, DefaultMaxUnfinished)
	o.MaxRequests, o.MaxUnfinished = int(requests), int(unfinished)
	if o.now == nil {
		o.now = time.Now
	}
	if o.openFile == nil {
		o.openFile = openDiskFile
	}
	switch {
	case o.CA == nil:
		return o, errors.New("a journal needs the CA's certificate")
	case o.FileSize < 0 || o.FileSize > 1<<30 || o.Reserve < 0 || o.MaxRequests < 0 ||
		o.MaxUnfinished < 0:
		return o, errors.New("a limit of the journal is negative, or its files are to be larger " +
			"than 1 GiB")
	}
	return o, nil
}

// A Writer is a journal that is open for writing. It is safe for concurrent use.
type Writer struct {
	dir     string
	options Options
	lock    *os.File
	id      ID
	repair  *Repair
	recent  []Recent
	done    chan struct{} // closed when the writer has ended

	stop      context.CancelFunc // ends the recheck of sealed files
	rechecked chan struct{}      // closed when that has ended

	// io is held while the file is used; it is taken before mu, and mu is not held while the disk
	// works.
	io        sync.Mutex
	file      file
	allocated int64   // bytes of the file that the disk has set aside
	unsynced  []byte  // whole lines behind the synced ones, while the journal is reopened; else nil
	resumed   *Repair // what was found behind them
	tried     time.Time

	// These change only while both are held.
	number uint32 // of the file
	synced chain  // up to the last line that is on the disk
	size   int64  // of the file, up to the same line
	last   int64  // where that line begins

	mu       sync.Mutex
	wake     *sync.Cond
	ledger   *ledger
	segments []*segment // of the sealed files; replaced as a whole
	damaged  error
	// when the disk was given the work that it has not done yet; zero when there is none
	working time.Time
	next    Head // of the last line in the queue
	queue   []*batch
	busy    map[key]bool
	intents int // in the queue
	broken  error
	full    error
	lost    []Head // that witnesses have seen, see RollBack
	closed  bool
}

// Open opens the journal in a directory and makes both where there is none. It reads and verifies
// all lines, and writes one that says who has opened it. It fails with [ErrLocked] when another
// process has the journal open, and with a [*Fault] when a line is wrong. A disk that is full or
// read-only is an error: try again later.
func Open(dir string, o Options) (*Writer, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := makeDirectory(dir); err != nil {
		return nil, err
	}
	lock, err := lockDirectory(dir, o)
	if err != nil {
		return nil, err
	}
	j := &Writer{dir: dir, options: o, lock: lock, done: make(chan struct{}),
		rechecked: make(chan struct{}), busy: map[key]bool{}}
	j.wake = sync.NewCond(&j.mu)
	taken, err := j.load()
	if err != nil {
		if j.file != nil {
			err = errors.Join(err, j.file.Close())
		}
		return nil, errors.Join(fmt.Errorf("open the journal in %s: %w", dir, err), lock.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	j.stop = stop
	go j.recheck(ctx, taken)
	go j.write()
	return j, nil
}

// load reads what is there, repairs an unfinished end, and writes the first line of this process.
// It returns the indexes of the files that it has not read.
func (j *Writer) load() ([]*segment, error) {
	j.ledger = newLedger()
	j.ledger.older = func(k key) (finished, bool, error) { return findSealed(j.dir, j.segments, k) }
	l := &loader{journal: j, since: j.options.now().Add(-RecentWindow)}
	end, err := replay(j.dir, reader{line: l.line, fits: j.ledger.fits, files: l})
	if err != nil {
		return nil, err
	}
	j.ledger.older = nil // from now on, see recall
	j.number, j.size, j.last, j.synced = end.number, end.size, end.last, end.chain
	if len(end.torn) > 0 {
		if j.repair, err = moveAway(j.dir, end, j.options.now()); err != nil {
			return nil, err
		}
	}
	if j.id = j.ledger.id; j.id == "" {
		if j.id, err = newID(); err != nil {
			return nil, err
		}
		j.ledger.id = j.id
	}
	j.ledger.opened = true
	return l.taken, j.begin(nil, Opened{Repaired: j.repair})
}

// begin opens the file again, cuts it behind the last synced line, and writes and syncs the lines
// and the one that says who has opened the journal.
func (j *Writer) begin(lines []byte, opened Opened) error {
	var err error
	path := filePath(j.dir, j.number)
	if j.file, err = j.options.openFile(path); err != nil {
		return err
	}
	b := &batch{}
	head, err := j.queueAgain(b, lines)
	if err != nil {
		return err
	}
	opened.Journal, opened.Version = j.id, j.options.Version
	opened.CASHA256 = hash(j.options.CA.Raw)
	if next := j.options.Next; next != nil {
		opened.NextCASHA256 = hash(next.Raw)
	}
	opened.Host, _ = os.Hostname() // it is for people to read
	opened.PID = os.Getpid()
	entry, body, err := encodeEntry(opened)
	if err != nil {
		return err
	}
	if _, err := b.add(head, j.options.now(), entry, body); err != nil {
		return err
	}
	// else the space that is set aside stays so
	if info, err := os.Stat(path); err != nil || info.Size() != j.size {
		if err := errors.Join(err, j.file.Truncate(j.size)); err != nil {
			return err
		}
	}
	if err := errors.Join(writeAndSync(j.file, b.bytes), syncDirectory(j.dir)); err != nil {
		return err
	}
	j.allocated = 0
	full := j.reserveFrom(j.size + int64(len(b.bytes)))
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.commit(b); err != nil {
		return err
	}
	j.next, j.full = j.synced.head, full
	return nil
}

// Close writes what is in the queue, and ends. Lines that come later answer [ErrClosed].
func (j *Writer) Close() error {
	j.mu.Lock()
	already := j.closed
	j.closed = true
	j.wake.Broadcast()
	j.mu.Unlock()
	<-j.done
	if already {
		return nil
	}
	j.stop()
	<-j.rechecked
	j.io.Lock()
	defer j.io.Unlock()
	var err error
	if j.file != nil {
		err = j.file.Close()
	}
	return errors.Join(err, j.lock.Close())
}

// ID is the journal's own, which its serial numbers begin with.
func (j *Writer) ID() ID { return j.id }

// RecentWindow is how far back [Writer.Recent] reaches from when the journal was opened.
const RecentWindow = time.Hour

// Recent is an intent that was there already when the journal was opened.
type Recent struct {
	At        time.Time // when it was written
	UID       string    // of the API object
	Rule      string    // that granted
	Requester policy.Requester
}

// Recent lists the intents that were written in the hour before the journal was opened, in their
// order.
func (j *Writer) Recent() []Recent { return j.recent }

// Repaired tells what was found behind the last whole line when the journal was last opened or
// reopened, and where it was moved; nil when there was nothing. It is to be logged.
func (j *Writer) Repaired() *Repair {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.repair
}

// Head is the last line that is on the disk, for a witness to keep.
func (j *Writer) Head() Head {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.synced.head
}

// Summary is what is on the disk; nothing is said of torn bytes.
func (j *Writer) Summary() Summary {
	j.mu.Lock()
	defer j.mu.Unlock()
	return Summary{Journal: j.id, Head: j.synced.head, Files: int(j.number),
		Counts: j.ledger.counts, Unfinished: len(j.ledger.open)}
}

// Ready returns nil if the journal takes a new request, and does not wait for a disk that hangs.
// A broken journal is reopened, at most once a second, and on a full disk only when
// there is space again: so it continues if it is called periodically.
func (j *Writer) Ready() error {
	err := j.State()
	// a write, or another Ready, will find out
	if err == nil || errors.Is(err, ErrClosed) || errors.Is(err, ErrSlow) || !j.io.TryLock() {
		return err
	}
	defer j.io.Unlock()
	defer j.work()()
	if !errors.Is(err, ErrBroken) && j.file != nil {
		full := j.reserveFrom(j.size)
		j.mu.Lock()
		j.full = full
		j.mu.Unlock()
		return j.State()
	}
	if since := j.options.now().Sub(j.tried); since >= 0 && since < retryInterval {
		return err
	}
	return j.reopen()
}

// State returns nil if the journal takes a new request, as far as is known: it touches no disk,
// and waits for nothing.
func (j *Writer) State() error {
	now := j.options.now()
	j.mu.Lock()
	defer j.mu.Unlock()
	var slow error
	switch {
	case j.closed:
		return ErrClosed
	case !j.working.IsZero() && now.Sub(j.working) > patience:
		slow = fmt.Errorf("%w: the disk has not answered for %s", ErrSlow,
			now.Sub(j.working).Round(time.Second))
	}
	return errors.Join(slow, j.broken, j.damaged, j.rolledBack(), j.full, j.usage().limit())
}

// Usage says how much of its limits the journal has used.
type Usage struct {
	Requests, MaxRequests     int // that are remembered
	Unfinished, MaxUnfinished int // that are neither published nor given up
}

// Usage says how much of its limits the journal has used. It waits for no disk.
func (j *Writer) Usage() Usage {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.usage()
}

// usage is Usage. The caller holds mu.
func (j *Writer) usage() Usage {
	return Usage{
		Requests: j.ledger.counts.Intents + j.intents, MaxRequests: j.options.MaxRequests,
		Unfinished: len(j.ledger.open) + j.intents, MaxUnfinished: j.options.MaxUnfinished,
	}
}

// limit returns nil if one more request fits, and else [ErrTooMany].
func (u Usage) limit() error {
	switch {
	case u.Unfinished >= u.MaxUnfinished:
		return fmt.Errorf("%w: %d are neither published nor given up: "+
			"see why they cannot be published, or raise JOURNAL_MAX_UNFINISHED",
			ErrTooManyUnfinished, u.Unfinished)
	case u.Requests >= u.MaxRequests:
		return fmt.Errorf("%w of requests: it knows %d: raise JOURNAL_MAX_REQUESTS, "+
			"or archive STATE_DIR and start with an empty one", ErrTooMany, u.Requests)
	}
	return nil
}

// work notes that the disk has something to do, until the function that it returns is called. io is
// held.
func (j *Writer) work() (done func()) {
	note := func(t time.Time) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.working = t
	}
	note(j.options.now())
	return func() { note(time.Time{}) }
}

// Lookup tells what the journal knows of a request; its state is [Unknown] when that is nothing.
// The certificate of a finished request is read from the disk, and compared with the hash of its
// line.
func (j *Writer) Lookup(uid string) (Record, error) {
	k := keyOf(uid)
	j.mu.Lock()
	record, segments := j.ledger.open[k], j.segments
	finished, found := j.ledger.index[k]
	j.mu.Unlock()
	if record != nil {
		return *record, nil
	}
	var err error
	var r Record
	if !found {
		finished, found, err = findSealed(j.dir, segments, k)
	}
	if found && err == nil {
		r, err = readRecord(j.dir, uid, finished)
	}
	if err != nil {
		j.damage(err)
	}
	return r, err
}

// Unpublished returns what is neither published nor orphaned, in the order of the intents.
func (j *Writer) Unpublished() []Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ledger.unfinished()
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
