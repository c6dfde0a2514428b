package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"
)

// A loader reads the journal when it is opened. Sealed files that have an index are taken as it
// says; those with lines of the last hour are read anyway.
type loader struct {
	journal *Writer
	since   time.Time
	taken   []*segment // without reading the file
	last    *segment   // the one that was taken just now; nil: the file before was read
}

func (l *loader) line(line Line, at place, sum Hash) error {
	if intent, ok := line.Entry.(Intent); ok && line.Time.After(l.since) {
		recent := Recent{At: line.Time, UID: intent.UID, Rule: intent.Rule,
			Requester: intent.Requester}
		l.journal.recent = append(l.journal.recent, recent)
	}
	return l.journal.ledger.apply(line, at, sum)
}

// skip reports whether the index of the next file is enough.
func (l *loader) skip(e *end) bool {
	j := l.journal
	s, err := readIndex(j.dir, e.number)
	if err != nil || s.Latest.After(l.since) || s.check(j.dir, e.chain.head) != nil ||
		j.ledger.id != "" && j.ledger.id != s.Journal {
		return false
	}
	e.chain.head, e.size, e.last, e.lines = s.After, s.Size, s.Last, int(s.After.Seq-s.Before.Seq)
	j.ledger.id = s.Journal
	j.add(s)
	l.taken, l.last = append(l.taken, s), s
	return true
}

// begin makes the ledger what it was before the next file.
func (l *loader) begin(e *end) error {
	s := l.last
	if l.last = nil; s == nil {
		return nil
	}
	var err error
	ledger := l.journal.ledger
	ledger.counts, ledger.accepted, ledger.rotation = s.Counts, s.Accepted, s.Rotation
	if ledger.open, err = s.restore(l.journal.dir); err != nil {
		return err
	}
	return l.journal.passAgain(&e.chain)
}

// sealed makes the index of a file that was read to its end.
func (l *loader) sealed(e *end) error {
	j := l.journal
	s, text, err := newSegment(j.ledger.header(e.number, e.size, e.last, j.sealedHead(),
		e.chain.head), j.ledger.index)
	if err != nil {
		return err
	}
	if there, err := os.ReadFile(indexPath(j.dir, e.number)); err == nil &&
		bytes.Equal(there, text) {
		s.table = nil
	} else {
		_ = s.save(j.dir, text) // on a full disk it stays in memory until the next start
	}
	clear(j.ledger.index)
	j.add(s)
	return nil
}

// add takes an index. Holders of the former slice may still use it.
func (j *Writer) add(s *segment) {
	j.segments = append(slices.Clip(j.segments), s)
}

// sealedHead is the last line of the last sealed file.
func (j *Writer) sealedHead() Head {
	if n := len(j.segments); n > 0 {
		return j.segments[n-1].After
	}
	return Head{}
}

// passAgain fills in what the chain has passed of late, from the sealed files.
func (j *Writer) passAgain(c *chain) error {
	window := uint64(len(c.recent))
	for _, s := range slices.Backward(j.segments) {
		if s.After.Seq+window <= c.head.Seq {
			return nil
		}
		err := s.read(j.dir, func(h Head) error {
			if h.Seq+window > c.head.Seq {
				c.recent[h.Seq%window] = h.SHA256
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// seal makes the index of a file that was just completed, and drops what it holds from memory. io
// is held, so that no line is applied meanwhile.
func (j *Writer) seal(number uint32, size, last int64) {
	j.mu.Lock()
	entries := map[key]finished{}
	for k, f := range j.ledger.index {
		entries[k] = f
	}
	header := j.ledger.header(number, size, last, j.sealedHead(), j.synced.head)
	j.mu.Unlock()
	s, text, err := newSegment(header, entries)
	if err != nil {
		return // all stays in memory, and the next start makes the index
	}
	_ = s.save(j.dir, text) // on a full disk it stays in memory until the next start
	j.mu.Lock()
	defer j.mu.Unlock()
	j.add(s)
	for k := range entries {
		if !j.busy[k] {
			delete(j.ledger.index, k)
		}
	}
}

// recall brings into memory what the sealed files know of a request. The caller holds mu, which is
// released while the disk is read.
func (j *Writer) recall(uid string) error {
	k := keyOf(uid)
	for uid != "" && !j.ledger.remembers(k) {
		segments := j.segments
		j.mu.Unlock()
		f, found, err := findSealed(j.dir, segments, k)
		j.mu.Lock()
		if err != nil {
			return err
		}
		if len(segments) != len(j.segments) {
			continue
		}
		if found && !j.ledger.remembers(k) {
			j.ledger.index[k] = f
		}
		return nil
	}
	return nil
}

// recheckShare is how much longer than its work the recheck of sealed files rests: the disk and the
// processor are for those who want certificates.
const recheckShare = 3

// recheck reads the sealed files that were taken as their indexes say, until the context ends.
func (j *Writer) recheck(ctx context.Context, taken []*segment) {
	defer close(j.rechecked)
	for _, s := range taken {
		began := time.Now()
		err := s.read(j.dir, func(Head) error { return ctx.Err() })
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			_ = os.Remove(indexPath(j.dir, s.File)) // so that the next start reads the file too
			j.damage(err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(recheckShare * time.Since(began)):
		}
	}
}

// damage notes that the disk does not hold any more what was written: nothing more is signed. Other
// errors may pass.
func (j *Writer) damage(err error) {
	var fault *Fault
	if !errors.As(err, &fault) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EIO) {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.damaged == nil {
		j.damaged = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
}
