package journal

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// reopen repairs a broken journal: through new descriptors it verifies that the last synced line is
// in its place, writes the whole lines after it again (the system may have forgotten that they are
// not on the disk), moves an unfinished end away, and writes a line that reports it. It returns nil
// if the journal takes lines again. Lines that failed with [ErrBroken] may be in the journal
// afterwards: [Writer.Lookup] tells. The caller must hold io.
func (j *Writer) reopen() error {
	j.mu.Lock()
	broken, closed := j.broken, j.closed
	j.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case broken == nil:
		return nil
	}
	j.tried = j.options.now()
	if err := j.resume(broken); err != nil {
		return fmt.Errorf("%w; opening it again: %w", broken, err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.broken = nil
	return nil
}

func (j *Writer) resume(broken error) error {
	if err := j.holdsLock(); err != nil {
		return err
	}
	if j.file != nil {
		_ = j.file.Close() // it has failed already
		j.file = nil
	}
	rest, err := j.readBehind()
	if err != nil {
		return err
	}
	if j.unsynced == nil { // on a second try what is there was written by the first
		lines, torn := j.split(rest)
		if err := j.moveTorn(int64(len(lines)), torn); err != nil {
			return err
		}
		j.unsynced = append([]byte{}, lines...)
	}
	if err := j.begin(j.unsynced,
		Opened{Resumed: broken.Error(), Repaired: j.resumed}); err != nil {
		return err
	}
	j.unsynced, j.resumed = nil, nil
	return nil
}

// moveTorn moves away what is neither synced nor, behind that, whole lines.
func (j *Writer) moveTorn(whole int64, torn []byte) error {
	if len(torn) == 0 {
		return nil
	}
	var err error
	j.resumed, err = moveAway(j.dir,
		&end{number: j.number, lines: -1, size: j.size + whole, torn: torn}, j.options.now())
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		j.repair = j.resumed
	}
	return err
}

// readBehind verifies the last synced line and returns what is behind it.
func (j *Writer) readBehind() ([]byte, error) {
	path := filePath(j.dir, j.number)
	f, err := openPlain(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.NewSectionReader(f, j.last, j.size-j.last+2*tornLimit))
	if err != nil {
		return nil, err
	}
	length := j.size - j.last
	if j.size > 0 &&
		(int64(len(data)) < length || sha256.Sum256(data[:length]) != j.synced.head.SHA256) {
		return nil, &Fault{File: filepath.Base(path),
			Err: fmt.Errorf("line %d of the journal was synced and is now missing: verify the disk",
				j.synced.head.Seq)}
	}
	return data[length:], nil
}

// split divides what is behind the synced lines into whole lines of the chain, and the rest.
func (j *Writer) split(rest []byte) (lines, torn []byte) {
	e := &end{chain: j.synced}
	for torn = rest; len(torn) > 0; {
		raw := firstLine(torn)
		if raw == nil || e.line(raw, nil, func(Line, place, Hash) error { return nil }) != nil {
			break
		}
		torn = torn[len(raw):]
	}
	return rest[:len(rest)-len(torn)], torn
}

// firstLine returns the first line with its newline; nil when there is none.
func firstLine(text []byte) []byte {
	for i, c := range text {
		if c == '\n' {
			return text[:i+1]
		}
	}
	return nil
}

// queueAgain puts whole lines that follow the synced ones into the batch.
func (j *Writer) queueAgain(b *batch, lines []byte) (Head, error) {
	head := j.synced.head
	for len(lines) > 0 {
		raw := firstLine(lines)
		if raw == nil {
			return head, errors.New("a line without an end")
		}
		l, err := parseLine(raw)
		if err != nil {
			return head, err
		}
		b.bytes = append(b.bytes, raw...)
		head = b.push(l, raw)
		lines = lines[len(raw):]
	}
	return head, nil
}
