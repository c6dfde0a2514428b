package journal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"syscall"
	"time"
)

// maxBatch is the size, in bytes, from which a batch takes no more lines.
const maxBatch = 1 << 20

// A batch is the lines that one write and one sync bring to the disk.
type batch struct {
	bytes []byte
	lines []queued
	done  chan struct{} // closed when the batch is on the disk, or has failed
	err   error         // after done
}

// queued is a line in a batch.
type queued struct {
	line Line
	sum  Hash
	size int // bytes
}

// add puts an entry, of which body is the JSON, behind the head and returns the new one.
func (b *batch) add(head Head, now time.Time, e Entry, body []byte) (Head, error) {
	line := Line{Seq: head.Seq + 1, Time: now.UTC(), Prev: head.SHA256, Entry: e}
	before := len(b.bytes)
	b.bytes = line.appendTo(b.bytes, body)
	if size := len(b.bytes) - before; size > maxLine {
		b.bytes = b.bytes[:before]
		return head, fmt.Errorf("the line would be %d bytes long; at most %d are taken", size,
			maxLine)
	}
	return b.push(line, b.bytes[before:]), nil
}

// push notes a line whose bytes are the last ones of the batch.
func (b *batch) push(line Line, raw []byte) Head {
	q := queued{line: line, sum: sha256.Sum256(raw), size: len(raw)}
	b.lines = append(b.lines, q)
	return Head{line.Seq, q.sum}
}

// wait returns nil if the batch is on the disk. When the context ends first, its lines may or may
// not get there: [Writer.Lookup] tells, later.
func (b *batch) wait(ctx context.Context) error {
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the journal: %w", context.Cause(ctx))
	}
}

// Append writes a line and returns nil if it is on the disk, synced. Callers at the same time share
// one sync. It fails with [ErrBroken], [ErrFull], [ErrClosed], [ErrBusy], [ErrConflict] or
// [ErrTooMany], and when the context ends first: then [Writer.Lookup] tells, later, whether the
// line got there.
func (j *Writer) Append(ctx context.Context, e Entry) error {
	b, err := j.start(e)
	if err != nil {
		return err
	}
	return b.wait(ctx)
}

// start puts a line into a batch, and does not wait for the disk.
func (j *Writer) start(e Entry) (*batch, error) {
	if err := j.acceptable(e); err != nil {
		return nil, err
	}
	e, body, err := encodeEntry(e)
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.recall(requestOf(e)); err != nil {
		return nil, err
	}
	now := j.options.now()
	if err := j.admit(e); err != nil {
		return nil, err
	}
	b := j.openBatch()
	head, err := b.add(j.next, now, e, body)
	if err != nil {
		return nil, err
	}
	j.next = head
	if len(b.lines) == 1 {
		j.queue = append(j.queue, b)
	}
	if uid := requestOf(e); uid != "" {
		j.busy[keyOf(uid)] = true
	}
	if _, is := e.(Intent); is {
		j.intents++
	}
	j.wake.Signal()
	return b, nil
}

// openBatch returns the batch that takes lines now; when it is new, it is not in the queue yet.
func (j *Writer) openBatch() *batch {
	if n := len(j.queue); n > 0 && len(j.queue[n-1].bytes) < maxBatch {
		return j.queue[n-1]
	}
	return &batch{done: make(chan struct{})}
}

// acceptable returns nil if the entry can be taken, as far as it alone tells.
func (j *Writer) acceptable(e Entry) error {
	if _, is := e.(Opened); is {
		return fmt.Errorf("%w: only the journal itself writes lines of the kind %s", ErrConflict,
			KindOpened)
	}
	if err := e.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	if s, is := e.(Signed); is && !s.isVerifiedBy(j.options.CA) &&
		!s.isVerifiedBy(j.options.Next) {
		return fmt.Errorf("%w: request %s: nobody has verified that the CA signed the certificate",
			ErrConflict, s.UID)
	}
	return nil
}

// isVerifiedBy reports whether the signature was verified as one of this CA, of which there may be
// several certificates; nil: there is no such CA.
func (s Signed) isVerifiedBy(ca *x509.Certificate) bool {
	return s.verifiedBy != nil && ca != nil &&
		bytes.Equal(s.verifiedBy.RawSubject, ca.RawSubject) &&
		bytes.Equal(s.verifiedBy.RawSubjectPublicKeyInfo, ca.RawSubjectPublicKeyInfo)
}

// admit returns nil if the entry can be taken now.
func (j *Writer) admit(e Entry) error {
	uid := requestOf(e)
	switch {
	case j.closed:
		return ErrClosed
	case j.broken != nil:
		return j.broken
	case uid != "" && j.busy[keyOf(uid)]:
		return fmt.Errorf("%w: %s", ErrBusy, uid)
	}
	if err := j.ledger.fits(e); err != nil {
		return err
	}
	switch e := e.(type) {
	case Intent:
		return errors.Join(j.damaged, j.rolledBack(), j.full, j.usage().limit())
	case Probe, Rotation:
		return errors.Join(j.damaged, j.rolledBack(), j.full)
	case Checkpoint:
		// Lines that are in the queue come before the checkpoint: half of what a reader remembers
		// is left for them.
		if recent := uint64(len(j.synced.recent) / 2); !j.synced.passed(Head{e.HeadSeq,
			e.HeadSHA256}) || j.next.Seq-e.HeadSeq > recent {
			return fmt.Errorf("%w: line %d with the hash %s is not one of the last %d lines",
				ErrConflict, e.HeadSeq, e.HeadSHA256, recent)
		}
		return errors.Join(j.rolledBack(), j.full)
	}
	return nil
}

// write brings one batch after another to the disk, until the journal is closed.
func (j *Writer) write() {
	defer close(j.done)
	for {
		b := j.nextBatch()
		if b == nil {
			return
		}
		j.bring(b)
		close(b.done)
	}
}

// bring brings a batch to the disk, or breaks the journal.
func (j *Writer) bring(b *batch) {
	j.io.Lock()
	defer j.io.Unlock()
	defer j.work()()
	full, err := j.writeBatch(b)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.full = full; err == nil {
		err = j.commit(b)
	}
	if err != nil {
		j.fail(b, err)
	}
}

// nextBatch waits for a batch and closes it to further lines; nil when the journal is closed.
func (j *Writer) nextBatch() *batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.queue) == 0 && !j.closed {
		j.wake.Wait()
	}
	if len(j.queue) == 0 {
		return nil
	}
	b := j.queue[0]
	j.queue = j.queue[1:]
	return b
}

// writeBatch writes and syncs. full says that there is no room for more requests.
func (j *Writer) writeBatch(b *batch) (full, err error) {
	if err := j.alone(); err != nil {
		return nil, err
	}
	if err := j.rotate(); err != nil {
		return nil, err
	}
	if err := writeAndSync(j.file, b.bytes); err != nil {
		return nil, err
	}
	return j.reserveFrom(j.size + int64(len(b.bytes))), nil
}

// alone returns nil if nothing shows that another process writes this journal: a lock is lost
// when its file is replaced, and a network's file system may forget it. io is held.
func (j *Writer) alone() error {
	if err := j.holdsLock(); err != nil {
		return err
	}
	size, err := j.file.size()
	if err == nil && size != j.size {
		err = fmt.Errorf("it is %d bytes long, and %d were written: another process has "+
			"written to it", size, j.size)
	}
	return err
}

// commit takes the lines of a batch that is on the disk. io and mu are held.
func (j *Writer) commit(b *batch) error {
	for _, q := range b.lines {
		if err := j.ledger.apply(q.line, place{j.number, uint32(j.size)}, q.sum); err != nil {
			return err
		}
		if uid := requestOf(q.line.Entry); uid != "" {
			delete(j.busy, keyOf(uid))
		}
		if _, is := q.line.Entry.(Intent); is {
			j.intents = max(j.intents-1, 0)
		}
		j.synced.advance(Head{q.line.Seq, q.sum})
		j.last = j.size
		j.size += int64(q.size)
	}
	return nil
}

// fail breaks the journal: this batch and all that wait behind it. mu is held.
func (j *Writer) fail(b *batch, cause error) {
	j.broken = fmt.Errorf("%w: %s: %w", ErrBroken, filepath.Base(filePath("", j.number)), cause)
	b.err = j.broken
	for _, waiting := range j.queue {
		waiting.err = j.broken
		close(waiting.done)
	}
	j.queue, j.intents = nil, 0
	clear(j.busy)
}

// rotate begins a new file when the present one is large enough. Without space for one it continues
// with the present one.
func (j *Writer) rotate() error {
	if j.size < j.options.FileSize || j.number == math.MaxUint32 {
		return nil
	}
	next, err := j.options.openFile(filePath(j.dir, j.number+1))
	if noRoom(err) {
		return nil
	}
	if err != nil {
		return err
	}
	allocated := j.options.Reserve
	if err := next.allocate(0, allocated); noRoom(err) {
		return next.Close() // it stays, empty, for the next try
	} else if err != nil {
		allocated = 0
	}
	if err := errors.Join(syncDirectory(j.dir), j.file.Truncate(j.size), j.file.Sync(),
		j.file.Close()); err != nil {
		return errors.Join(err, next.Close())
	}
	number, size, last := j.number, j.size, j.last
	j.mu.Lock()
	j.file, j.number, j.size, j.last, j.allocated = next, j.number+1, 0, 0, allocated
	j.mu.Unlock()
	j.seal(number, size, last)
	return nil
}

// reserveFrom keeps space set aside on the disk behind the lines, so that what is started can be
// finished when nothing else fits any more. io is held. The error is [ErrFull].
func (j *Writer) reserveFrom(size int64) error {
	if j.allocated-size >= j.options.Reserve {
		return nil
	}
	length := 2 * j.options.Reserve
	free, err := j.file.free()
	if err == nil && free < length {
		length = j.options.Reserve // which needs no more space than what is set aside already
	}
	switch allocated := j.file.allocate(size, length); {
	case allocated == nil:
		j.allocated = size + length
	// where nothing can be set aside, what is free must do
	case noRoom(allocated) || err == nil && free < j.options.Reserve:
		return ErrFull
	}
	return nil
}

func noRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
