package journal

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
)

// ErrRolledBack says that a witness has kept a head that the journal does not contain: its end was
// cut off, or an older copy was put in its place.
var ErrRolledBack = errors.New("the journal was rolled back")

// Contains reports whether the head is a line of this journal. It reads the disk for a line that is
// not one of the last ones.
func (j *Writer) Contains(head Head) (bool, error) {
	j.mu.Lock()
	last, recent, number := j.synced.head, j.synced.passed(head), j.number
	j.mu.Unlock()
	if recent || head.Seq == 0 || head.Seq > last.Seq {
		return recent, nil
	}
	sum, err := hashOfLine(j.dir, number, head.Seq)
	if err != nil {
		return false, fmt.Errorf("read line %d of the journal: %w", head.Seq, err)
	}
	return sum == head.SHA256, nil
}

// hashOfLine reads the hash of one line. number is the last file.
func hashOfLine(dir string, number uint32, seq uint64) (Hash, error) {
	for ; number > 0; number-- {
		sum, found, err := hashInFile(filePath(dir, number), seq)
		if found || err != nil {
			return sum, err
		}
	}
	return Hash{}, errors.New("no file has it")
}

// hashInFile is hashOfLine for one file. It returns false if the line belongs to a file before.
func hashInFile(path string, seq uint64) (sum Hash, found bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, false, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, maxLine)
	raw, err := r.ReadSlice('\n')
	if err != nil {
		return sum, false, err
	}
	first, _, err := parseBegin(raw)
	if err != nil || first.Seq > seq {
		return sum, false, err
	}
	for ; first.Seq < seq && err == nil; first.Seq++ {
		raw, err = r.ReadSlice('\n')
	}
	return sha256.Sum256(raw), true, err
}

// Witnessed compares the journal with a head that a witness has kept. It returns an error that
// wraps [ErrRolledBack] if the journal does not contain the head, and nobody has accepted that.
func (j *Writer) Witnessed(head Head) error {
	contains, err := j.Contains(head)
	if err != nil || contains || j.Accepted(head) {
		return err
	}
	return lost(head, j.Head())
}

func lost(head, last Head) error {
	return fmt.Errorf("%w: a witness has seen line %s, and this journal, which ends with line "+
		"%d, does not have it",
		ErrRolledBack, head, last.Seq)
}

// Accepted reports whether a [Rollback] of this head is in the journal.
func (j *Writer) Accepted(head Head) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Contains(j.ledger.accepted, head)
}

// RollBack stops the journal because of a head that [Writer.Witnessed] does not find: it takes no
// intent, no probe and no checkpoint until it has a [Rollback] of this head. Requests that have an
// intent can still be finished.
func (j *Writer) RollBack(head Head) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !slices.Contains(j.lost, head) {
		j.lost = append(j.lost, head)
	}
}

// RolledBack returns an error that wraps [ErrRolledBack] while the journal is stopped by
// [Writer.RollBack].
func (j *Writer) RolledBack() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.rolledBack()
}

// rolledBack is RolledBack. The caller must hold mu.
func (j *Writer) rolledBack() error {
	for _, head := range j.lost {
		if !slices.Contains(j.ledger.accepted, head) {
			return lost(head, j.synced.head)
		}
	}
	return nil
}
