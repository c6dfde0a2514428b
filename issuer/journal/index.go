package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A segment is the index of a sealed file: one that another file follows, so that no line is added
// to it. It holds what the file says of requests that are finished, on disk, and four bytes of each
// in memory. It is made from the journal, is never part of it, and is made again when it is missing
// or damaged.
type segment struct {
	indexHeader
	prints []uint32 // the first 32 bits of each key, ascending, as in the table
	table  []byte   // nil where the index file has it
	start  int64    // of the table in the index file
}

// An indexHeader is the first line of an index file, in JSON. The table of entries follows it,
// sorted by key, and the SHA-256 of all before.
type indexHeader struct {
	Version int         `json:"version"`
	File    uint32      `json:"file"`
	Journal ID          `json:"journal"`
	Size    int64       `json:"size"`           // of the sealed file, in bytes
	Last    int64       `json:"last"`           // where its last line begins
	Latest  time.Time   `json:"latest"`         // the latest time of one of its lines
	Before  Head        `json:"before"`         // the last line of the file before
	After   Head        `json:"after"`          // its own last line
	Counts  Counts      `json:"counts"`         // of all lines up to there
	Open    []openLines `json:"open,omitempty"` // the requests that were unfinished there
	Entries int         `json:"entries"`
	// Accepted are the heads of all lines of the kind rollback up to there.
	Accepted []Head `json:"accepted,omitempty"`
	// Rotation is the last line of its kind up to there; nil: there is none.
	Rotation *Rotation `json:"rotation,omitempty"`
}

// openLines are the lines of an unfinished request.
type openLines struct {
	Intent lineRef  `json:"intent"`
	Signed *lineRef `json:"signed,omitempty"`
}

// A lineRef names a line and what is in it.
type lineRef struct {
	File   uint32 `json:"file"`
	Offset uint32 `json:"offset"`
	SHA256 Hash   `json:"sha256"`
}

const (
	indexName    = "index-%08d"
	indexVersion = 1
	// key 16, file 4, offset 4, sum 8, serial 8, expires 4, state 1, unsigned 1, zero 2, CRC 4
	entrySize = 52
)

func indexPath(dir string, number uint32) string {
	return filepath.Join(dir, fmt.Sprintf(indexName, number))
}

func appendEntry(to []byte, k key, f finished) []byte {
	begin := len(to)
	to = append(to, k[:]...)
	to = binary.BigEndian.AppendUint32(to, f.at.file)
	to = binary.BigEndian.AppendUint32(to, f.at.offset)
	to = append(to, f.sum[:]...)
	to = append(to, f.serial[:]...)
	to = binary.BigEndian.AppendUint32(to, f.expires)
	unsigned := byte(0)
	if f.unsigned {
		unsigned = 1
	}
	to = append(to, byte(f.state), unsigned, 0, 0)
	return binary.BigEndian.AppendUint32(to, crc32.ChecksumIEEE(to[begin:]))
}

// parseEntry reads an entry; false: it is damaged.
func parseEntry(b []byte) (k key, f finished, ok bool) {
	const crc = entrySize - 4
	if crc32.ChecksumIEEE(b[:crc]) != binary.BigEndian.Uint32(b[crc:]) {
		return k, f, false
	}
	f = finished{
		at:       place{binary.BigEndian.Uint32(b[16:]), binary.BigEndian.Uint32(b[20:])},
		sum:      [8]byte(b[24:32]),
		serial:   [8]byte(b[32:40]),
		expires:  binary.BigEndian.Uint32(b[40:]),
		state:    State(b[44]),
		unsigned: b[45] == 1,
	}
	return key(b[:16]), f, true
}

// newSegment makes the index of a file, and the bytes of its index file.
func newSegment(h indexHeader, entries map[key]finished) (*segment, []byte, error) {
	h.Version, h.Entries = indexVersion, len(entries)
	text, err := json.Marshal(h)
	if err != nil {
		return nil, nil, err
	}
	text = append(text, '\n')
	s := &segment{indexHeader: h, start: int64(len(text))}
	keys := slices.SortedFunc(maps.Keys(entries), func(a, b key) int {
		return bytes.Compare(a[:], b[:])
	})
	for _, k := range keys {
		text = appendEntry(text, k, entries[k])
		s.prints = append(s.prints, k.print())
	}
	s.table = text[s.start:]
	sum := sha256.Sum256(text)
	return s, append(slices.Clip(text), sum[:]...), nil
}

func (k key) print() uint32 { return binary.BigEndian.Uint32(k[:]) }

// save writes the index file, and then keeps the table there alone. It is not synced: the checksum
// shows what a power cut leaves of it.
func (s *segment) save(dir string, text []byte) error {
	path := indexPath(dir, s.File)
	if err := os.Remove(path + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// which follows no link
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	s.table = nil
	return nil
}

// readIndex reads an index file, and verifies that it is whole.
func readIndex(dir string, number uint32) (*segment, error) {
	text, err := os.ReadFile(indexPath(dir, number))
	if err != nil {
		return nil, err
	}
	damaged := fmt.Errorf("%s is damaged", filepath.Base(indexPath("", number)))
	body := text[:max(len(text)-sha256.Size, 0)]
	header, table, found := bytes.Cut(body, []byte("\n"))
	if sum := sha256.Sum256(body); !found || !bytes.Equal(sum[:], text[len(body):]) {
		return nil, damaged
	}
	s := &segment{start: int64(len(header)) + 1}
	if err := json.Unmarshal(header, &s.indexHeader); err != nil {
		return nil, err
	}
	if s.Version != indexVersion || s.File != number || len(table) != s.Entries*entrySize {
		return nil, damaged
	}
	s.prints = make([]uint32, 0, s.Entries)
	for entry := range slices.Chunk(table, entrySize) {
		s.prints = append(s.prints, key(entry[:16]).print())
	}
	if !slices.IsSorted(s.prints) {
		return nil, damaged
	}
	return s, nil
}

// find returns what the file says of a request.
func (s *segment) find(dir string, k key) (finished, bool, error) {
	at, _ := slices.BinarySearch(s.prints, k.print())
	for ; at < len(s.prints) && s.prints[at] == k.print(); at++ {
		there, f, err := s.entry(dir, at)
		if err != nil || there == k {
			return f, err == nil, err
		}
	}
	return finished{}, false, nil
}

// entry reads one entry of the table.
func (s *segment) entry(dir string, at int) (key, finished, error) {
	entry := make([]byte, entrySize)
	if s.table != nil {
		copy(entry, s.table[at*entrySize:])
	} else if err := readAt(indexPath(dir, s.File), entry,
		s.start+int64(at)*entrySize); err != nil {
		return key{}, finished{}, s.damaged(err)
	}
	k, f, ok := parseEntry(entry)
	if !ok || k.print() != s.prints[at] {
		return key{}, finished{}, s.damaged(errors.New("an entry was changed since it was read"))
	}
	return k, f, nil
}

func (s *segment) damaged(err error) error {
	return &Fault{
		File: filepath.Base(indexPath("", s.File)),
		Err: fmt.Errorf(
			"the index cannot be used: %w; restart hsm-signer, which makes it again", err),
	}
}

func readAt(path string, to []byte, offset int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_, err = f.ReadAt(to, offset)
	return errors.Join(err, f.Close())
}

// findSealed returns what the sealed files say of a request: the newest knows best.
func findSealed(dir string, segments []*segment, k key) (finished, bool, error) {
	for _, s := range slices.Backward(segments) {
		if f, found, err := s.find(dir, k); found || err != nil {
			return f, found, err
		}
	}
	return finished{}, false, nil
}

// check returns nil if the index fits the file: its size, its last line, and the line before it.
func (s *segment) check(dir string, before Head) error {
	info, err := os.Stat(filePath(dir, s.File))
	if err != nil {
		return err
	}
	last, err := readLineAt(filePath(dir, s.File), s.Last)
	if err != nil {
		return err
	}
	if s.Before != before || info.Size() != s.Size || s.Last+int64(len(last)) != s.Size ||
		sha256.Sum256(last) != s.After.SHA256 {
		return s.damaged(errors.New("it is of another file"))
	}
	return nil
}

// read goes through the sealed file and verifies its chain of hashes, from the line before it to
// its last: so each byte of it, but not what the lines say. That was verified when it was sealed.
func (s *segment) read(dir string, step func(Head) error) error {
	e := &end{number: s.File, light: true}
	e.chain.head = s.Before
	err := e.readFile(dir, reader{line: func(l Line, _ place, sum Hash) error {
		return step(Head{l.Seq, sum})
	}})
	if err == nil && (len(e.torn) > 0 || e.chain.head != s.After) {
		err = &Fault{File: filepath.Base(filePath("", s.File)), Err: fmt.Errorf(
			"it ends with line %d of the journal, and ended with line %s when it was sealed",
			e.chain.head.Seq, s.After)}
	}
	return err
}

// restore reads the unfinished requests from their lines.
func (s *segment) restore(dir string) (map[key]*Record, error) {
	open := map[key]*Record{}
	for _, lines := range s.Open {
		intended, err := lines.Intent.read(dir)
		if err != nil {
			return nil, err
		}
		intent, is := intended.Entry.(Intent)
		if !is {
			return nil, s.damaged(errors.New("an unfinished request has no intent"))
		}
		r := &Record{
			State: Intended, Intent: intent, Intended: intended.Time, Inherited: true,
			seq:    intended.Seq,
			intent: lines.Intent, at: lines.Intent.place(), sum: lines.Intent.SHA256,
		}
		if lines.Signed != nil {
			line, err := lines.Signed.read(dir)
			if err != nil {
				return nil, err
			}
			signed, is := line.Entry.(Signed)
			if !is || checkSigned(signed, r) != nil {
				return nil,
					s.damaged(errors.New("an unfinished request has another one's certificate"))
			}
			r.State, r.Certificate = HasCertificate, signed.Certificate
			r.at, r.sum = lines.Signed.place(), lines.Signed.SHA256
		}
		open[keyOf(intent.UID)] = r
	}
	return open, nil
}

func (r lineRef) place() place { return place{r.File, r.Offset} }

// read reads the line, and verifies that it is the one that was meant.
func (r lineRef) read(dir string) (Line, error) {
	raw, err := readLineAt(filePath(dir, r.File), int64(r.Offset))
	if err != nil {
		return Line{}, err
	}
	if sha256.Sum256(raw) != r.SHA256 {
		return Line{}, &Fault{File: filepath.Base(filePath("", r.File)),
			Err: fmt.Errorf("the line at byte %d was changed since it was written", r.Offset)}
	}
	return parseLine(raw)
}
