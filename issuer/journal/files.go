package journal

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A Fault is a line that is wrong.
type Fault struct {
	File string // in the journal's directory
	Line int    // from 1; 0 when the file as a whole is meant
	Err  error
}

// Error says where and what.
func (f *Fault) Error() string {
	if f.Line == 0 {
		return fmt.Sprintf("%s: %v", f.File, f.Err)
	}
	return fmt.Sprintf("%s, line %d: %v", f.File, f.Line, f.Err)
}

// Unwrap returns what is wrong.
func (f *Fault) Unwrap() error { return f.Err }

const (
	fileFormat = "journal-%08d.jsonl"
	lockName   = "lock"
)

func filePath(dir string, number uint32) string {
	return filepath.Join(dir, fmt.Sprintf(fileFormat, number))
}

// countFiles returns how many files the journal has. Their numbers run from 1 without a gap.
func countFiles(dir string) (uint32, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var numbers []uint32
	for _, entry := range entries {
		var number uint32
		if _, err := fmt.Sscanf(entry.Name(), fileFormat, &number); err == nil &&
			entry.Name() == filepath.Base(filePath("", number)) {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	for i, number := range numbers {
		if want := uint32(i) + 1; number != want {
			return 0, &Fault{File: filepath.Base(filePath("", want)),
				Err: errors.New("the file is missing")}
		}
	}
	return uint32(len(numbers)), nil
}

// makeDirectory makes the directory for its owner alone. One that is there is narrowed; where that
// is not allowed, as with some mounted volumes, others must at least not be able to write to it.
func makeDirectory(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err == nil {
		err = ownedBy(info, dir, os.Geteuid())
	}
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil && info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("%s may be written by everybody (mode %04o), and cannot be narrowed: %w",
			dir, info.Mode().Perm(), err)
	}
	return nil
}

// lockDirectory takes the lock, which lasts as long as the file is open, and writes into it who has
// it.
func lockDirectory(dir string, o Options) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	lock, err := openOwn(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		holder, _ := io.ReadAll(io.LimitReader(lock, 1<<10)) // a courtesy
		err = fmt.Errorf("%w: %s is held by %s", ErrLocked, path, strings.TrimSpace(string(holder)))
	}
	if err == nil {
		err = writeHolder(lock, o)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

func writeHolder(lock *os.File, o Options) error {
	host, _ := os.Hostname() // it is for people to read
	text := fmt.Sprintf("process %d on %s since %s\n", os.Getpid(), host,
		o.now().UTC().Format(time.RFC3339))
	if err := lock.Truncate(0); err != nil {
		return err
	}
	_, err := lock.WriteAt([]byte(text), 0)
	if errors.Is(err, syscall.ENOSPC) { // on a full disk the lock holds anyway
		return nil
	}
	return err
}

// holdsLock returns nil if the lock is held, or could be taken again, and is on the file that
// others would lock.
func (j *Writer) holdsLock() error {
	if err := syscall.Flock(int(j.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("%w: the system has given the lock that this process held to another",
				ErrLocked)
		}
		return err
	}
	ours, err := j.lock.Stat()
	if err != nil {
		return err
	}
	path := filepath.Join(j.dir, lockName)
	if there, err := os.Lstat(path); err != nil || !os.SameFile(ours, there) {
		return errors.Join(fmt.Errorf("%s was removed or replaced while this process held it: "+
			"another may write the journal; see that none does, and start this one again",
			path), err)
	}
	return nil
}

// Locked reports whether a process has the journal open for writing.
func Locked(dir string) bool {
	lock, err := openPlain(filepath.Join(dir, lockName), os.O_RDONLY)
	if err != nil {
		return false
	}
	defer lock.Close()
	return errors.Is(syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB),
		syscall.EWOULDBLOCK)
}

// A file is the one that lines are appended to.
type file interface {
	io.WriteCloser
	Sync() error
	Truncate(size int64) error
	// allocate sets bytes aside on the disk, from an offset on; errors.ErrUnsupported where that
	// cannot be done.
	allocate(from, length int64) error
	// size returns the bytes that the file has.
	size() (int64, error)
	// free returns the bytes that are free on the disk.
	free() (int64, error)
}

type diskFile struct{ *os.File }

// openDiskFile opens a file for appending and makes it where there is none.
func openDiskFile(path string) (file, error) {
	f, err := openOwn(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND)
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

func (f diskFile) size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func writeAndSync(f file, data []byte) error {
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// syncDirectory makes the names of new files durable.
func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// A chain is where reading or writing has come to, and what it has passed of late.
type chain struct {
	head   Head
	recent [4096]Hash // by the sequence number's remainder
}

// follow returns nil if the line comes next.
func (c *chain) follow(l Line) error {
	switch {
	case l.Seq != c.head.Seq+1:
		return fmt.Errorf("the sequence number is %d; it must be %d", l.Seq, c.head.Seq+1)
	case l.Prev != c.head.SHA256:
		return &errChain{before: c.head.SHA256, says: l.Prev}
	}
	if check, is := l.Entry.(Checkpoint); is && !c.passed(Head{check.HeadSeq, check.HeadSHA256}) {
		return fmt.Errorf("the checkpoint is for line %d with the hash %s, which is not one of "+
			"the %d lines before", check.HeadSeq, check.HeadSHA256, len(c.recent))
	}
	return nil
}

// errChain says that a line and the one before it do not fit together.
type errChain struct{ before, says Hash }

func (e *errChain) Error() string {
	return fmt.Sprintf("the hash of the line before is %s, and this one says %s: this line was "+
		"changed, or lines before it are missing", e.before, e.says)
}

func (c *chain) advance(to Head) {
	c.head = to
	c.recent[to.Seq%uint64(len(c.recent))] = to.SHA256
}

// passed reports whether the head is one of the recent ones.
func (c *chain) passed(h Head) bool {
	return h.Seq <= c.head.Seq && h.Seq+uint64(len(c.recent)) > c.head.Seq && h.Seq > 0 &&
		c.recent[h.Seq%uint64(len(c.recent))] == h.SHA256
}

// An end is where the whole lines end.
type end struct {
	chain  chain
	number uint32 // of the file; 1 when there is none
	lines  int    // in the file
	size   int64  // bytes of them
	last   int64  // where the last line begins
	torn   []byte // what follows them
	before Fault  // where the line before is, when the file has none yet
	light  bool   // only the chain of hashes is verified, not what the lines say
}

// tornLimit bounds what a power cut can leave: one batch, since each is synced before the next.
const tornLimit = maxBatch + maxLine

// A reader is told what is read.
type reader struct {
	line func(l Line, at place, sum Hash) error // each line, of which the chain is verified
	// asked whether an entry could follow now; nil: each could
	fits     func(Entry) error
	progress func(bytes int64) // so many bytes more; nil: nobody wants to know
	files    files             // called for each file; may be nil
}

// files is called for the files that are read.
type files interface {
	// whether the file, which others follow, need not be read; it sets the end to the file's
	skip(e *end) bool
	begin(e *end) error  // before a file is read
	sealed(e *end) error // after a file was read that others follow
}

// replay reads the whole journal, verifies the chain and hands each line to the reader. A wrong
// line is a [*Fault].
func replay(dir string, to reader) (*end, error) {
	e := &end{number: 1}
	count, err := countFiles(dir)
	if err != nil {
		return nil, err
	}
	for number := uint32(1); number <= count; number++ {
		if number > 1 && e.lines == 0 {
			return nil, &Fault{File: filepath.Base(filePath("", e.number)),
				Err: errors.New("the file is empty, and others follow it")}
		}
		e.before = Fault{File: filepath.Base(filePath("", e.number)), Line: e.lines}
		e.number, e.lines, e.size, e.last = number, 0, 0, 0
		if to.files != nil && number < count && to.files.skip(e) {
			continue
		}
		if to.files != nil {
			if err := to.files.begin(e); err != nil {
				return nil, err
			}
		}
		if err := e.readFile(dir, to); err != nil {
			return nil, err
		}
		if len(e.torn) > 0 && number < count && !emptyFrom(dir, number+1, count) {
			return nil, e.fault(errors.New("the line does not end, and other files follow"))
		}
		if len(e.torn) > 0 {
			break
		}
		if to.files != nil && number < count {
			if err := to.files.sealed(e); err != nil {
				return nil, err
			}
		}
	}
	return e, nil
}

// emptyFrom reports whether the files are empty: one is made before it is written to.
func emptyFrom(dir string, from, to uint32) bool {
	for number := from; number <= to; number++ {
		if info, err := os.Stat(filePath(dir, number)); err != nil || info.Size() > 0 {
			return false
		}
	}
	return true
}

func (e *end) fault(err error) error {
	return &Fault{File: filepath.Base(filePath("", e.number)), Line: e.lines + 1, Err: err}
}

// blame makes what is wrong with a line a fault. When two lines do not fit together, it is the
// first that was changed if the second is what the one after it says it is, or if there is none
// after it.
func (e *end) blame(wrong error, raw []byte, r *bufio.Reader) error {
	var unfit *errChain
	if !errors.As(wrong, &unfit) {
		return e.fault(wrong)
	}
	sum := sha256.Sum256(raw)
	after, err := r.ReadSlice('\n')
	next, _, wrongAfter := parseBegin(after)
	if !errors.Is(err, io.EOF) && (err != nil || wrongAfter != nil || next.Prev != sum) {
		return e.fault(wrong)
	}
	fault := Fault{File: filepath.Base(filePath("", e.number)), Line: e.lines}
	if e.lines == 0 {
		fault = e.before
	}
	fault.Err = fmt.Errorf("its hash is %s, and the line after it says %s: it was changed, or "+
		"lines behind it are missing", unfit.before, unfit.says)
	return &fault
}

// readFile continues with one file.
func (e *end) readFile(dir string, to reader) error {
	f, err := openPlain(filePath(dir, e.number), os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, maxLine)
	for {
		raw, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(raw) == 0:
			return nil
		case err == nil || errors.Is(err, io.EOF) || errors.Is(err, bufio.ErrBufferFull):
		default:
			return err
		}
		wrong := e.line(raw, err, to.line)
		// perhaps it is being written: what is there by now is not looked at
		if errors.Is(wrong, errNoNewline) {
			e.torn = bytes.Clone(raw)
			return nil
		}
		if wrong != nil {
			return e.readTorn(f, to.fits, e.blame(wrong, raw, r))
		}
		if to.progress != nil {
			to.progress(int64(len(raw)))
		}
	}
}

var errNoNewline = errors.New("the line does not end")

// line takes one line.
func (e *end) line(raw []byte, err error, step func(Line, place, Hash) error) error {
	switch {
	case errors.Is(err, io.EOF):
		return errNoNewline
	case err != nil:
		return fmt.Errorf("the line is longer than %d bytes", maxLine)
	}
	l, err := e.parse(raw)
	if err != nil {
		return err
	}
	if err := e.chain.follow(l); err != nil {
		return err
	}
	if l.Seq == 1 && l.Kind() != KindOpened {
		return fmt.Errorf("the first line must be of the kind %s", KindOpened)
	}
	sum := Hash(sha256.Sum256(raw))
	if err := step(l, place{e.number, uint32(e.size)}, sum); err != nil {
		return err
	}
	e.chain.advance(Head{l.Seq, sum})
	e.last = e.size
	e.size += int64(len(raw))
	e.lines++
	return nil
}

func (e *end) parse(raw []byte) (Line, error) {
	if !e.light {
		return parseLine(raw)
	}
	l, _, err := parseBegin(raw)
	return l, err
}

// readTorn keeps what follows the last whole line when that is what a power cut can leave, and else
// answers what is wrong with it. Such an end holds pages that were never written, which read as
// zeros; no line has any. (Or it has no newline, which was seen already.)
func (e *end) readTorn(f *os.File, fits func(Entry) error, wrong error) error {
	rest, err := io.ReadAll(io.NewSectionReader(f, e.size, tornLimit+1))
	if err != nil {
		return err
	}
	if bytes.IndexByte(rest, 0) < 0 || len(rest) > tornLimit || !oneBatch(rest, fits) {
		return wrong
	}
	e.torn = rest
	return nil
}

// oneBatch reports whether the lines that can be read in what follows the last whole line may all
// be of one batch, which nobody was reported: each could follow that line, no request has two of
// them, and nothing else comes behind one that opens the journal. Otherwise some were synced, and
// the disk has lost what stood before them.
func oneBatch(rest []byte, fits func(Entry) error) bool {
	// one that cannot be synced is written again at each try to open
	seen, opened := map[string]bool{}, false
	for raw := range bytes.Lines(rest) {
		l, err := parseLine(raw)
		if err != nil {
			continue
		}
		uid := requestOf(l.Entry)
		_, opens := l.Entry.(Opened)
		if opened && !opens || uid != "" && seen[uid] || fits != nil && fits(l.Entry) != nil {
			return false
		}
		seen[uid], opened = true, opens
	}
	return true
}

// moveAway moves the unfinished end of the journal into a file of its own, and reports it.
func moveAway(dir string, e *end, now time.Time) (*Repair, error) {
	path := filePath(dir, e.number)
	name := fmt.Sprintf("torn-%08d-%s", e.number, now.UTC().Format("20060102T150405.000000000"))
	r := &Repair{File: filepath.Base(path), Line: e.lines + 1, Bytes: len(e.torn),
		SHA256: hash(e.torn), MovedTo: name}
	side, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = side.Write(e.torn)
	if err := errors.Join(err, side.Sync(), side.Close(), syncDirectory(dir)); err != nil {
		return nil, errors.Join(err, os.Remove(side.Name()))
	}
	f, err := openOwn(path, os.O_WRONLY)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(e.size), f.Close()); err != nil {
		return nil, err
	}
	return r, nil
}

// readRecord reads what was put down of a finished request.
func readRecord(dir, uid string, f finished) (Record, error) {
	raw, err := readLineAt(filePath(dir, f.at.file), int64(f.at.offset))
	if err != nil {
		return Record{}, err
	}
	fault := func(err error) error {
		return &Fault{File: filepath.Base(filePath("", f.at.file)),
			Err: fmt.Errorf("the line at byte %d: %w", f.at.offset, err)}
	}
	if sum := sha256.Sum256(raw); [8]byte(sum[:8]) != f.sum {
		return Record{}, fault(errors.New("it was changed since it was written"))
	}
	l, err := parseLine(raw)
	if err != nil {
		return Record{}, fault(err)
	}
	r := Record{State: f.state}
	switch e := l.Entry.(type) {
	case Intent:
		r.Intent = e
	case Signed:
		r.Intent, r.Certificate = Intent{UID: e.UID, Serial: e.Serial}, e.Certificate
		if r.Intent.TBS, err = tbsOf(e.Certificate); err != nil {
			return Record{}, fault(err)
		}
	}
	if r.Intent.UID != uid {
		return Record{},
			fault(fmt.Errorf("it is about the request %q, and not %q", r.Intent.UID, uid))
	}
	return r, nil
}

func readLineAt(path string, offset int64) ([]byte, error) {
	f, err := openPlain(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := bufio.NewReader(io.NewSectionReader(f, offset, maxLine))
	raw, err := r.ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		return nil, &Fault{File: filepath.Base(path),
			Err: fmt.Errorf("the line at byte %d is missing", offset)}
	}
	return raw, err
}
