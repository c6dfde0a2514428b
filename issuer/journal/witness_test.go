package journal

import (
	"crypto/x509"
	"errors"
	"fmt"
	"testing"
	"time"
)

// A head is found wherever its line is: in memory, on the disk, in a file before.
func TestContains(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	j := open(t, dir, Options{CA: ca.cert, FileSize: 4 << 10})
	heads := []Head{j.Head()}
	for i := range 9 {
		issue(t, ca, j, fmt.Sprint(i))
		heads = append(heads, j.Head())
	}
	for range 2 {
		j.mu.Lock()
		if j.number < 3 {
			t.Errorf("%d files", j.number)
		}
		j.mu.Unlock()
		for _, head := range heads {
			other := head
			other.SHA256[0]++
			for head, want := range map[Head]bool{head: true, other: false,
				{head.Seq + 1000, head.SHA256}: false, {}: false} {
				if contains, err := j.Contains(head); err != nil || contains != want {
					t.Errorf("%s: %t, %v", head, contains, err)
				}
			}
		}
		j.mu.Lock()
		clear(j.synced.recent[:]) // as after thousands of lines
		j.mu.Unlock()
	}
}

// A journal of which a witness knows a line more begins nothing, until a person accepts that; what
// was started is finished.
func TestARolledBackJournalStops(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	j := open(t, dir, Options{CA: ca.cert})
	issue(t, ca, j, "one")
	intent, signed, published := ca.lines(t, j.ID(), "two", time.Hour)
	put(t, j, intent)
	seen := Head{j.Head().Seq, Hash{7}}
	if err := j.Witnessed(j.Head()); err != nil {
		t.Errorf("its own head: %v", err)
	}
	if err := j.Witnessed(seen); !errors.Is(err, ErrRolledBack) {
		t.Errorf("another head: %v", err)
	}
	stopped := func(j *Writer) {
		t.Helper()
		other, _, _ := ca.lines(t, j.ID(), "three", time.Hour)
		head := j.Head()
		for _, e := range []Entry{other, Probe{When: ProbeReady},
			Checkpoint{head.Seq, head.SHA256, "", x509.ECDSAWithSHA256.String(), nil}} {
			if err := j.Append(t.Context(), e); !errors.Is(err, ErrRolledBack) {
				t.Errorf("%s: %v", e.Kind(), err)
			}
		}
		if !errors.Is(j.Ready(), ErrRolledBack) || !errors.Is(j.State(), ErrRolledBack) ||
			!errors.Is(j.RolledBack(), ErrRolledBack) {
			t.Error("it says that it is ready")
		}
	}
	j.RollBack(seen)
	stopped(j)
	put(t, j, signed, published)
	put(t, j, Rollback{seen.Seq + 1, seen.SHA256})
	stopped(j) // that was another head
	put(t, j, Rollback{seen.Seq, seen.SHA256}, Probe{When: ProbeReady})
	if err := errors.Join(j.Ready(), j.RolledBack(), j.Witnessed(seen)); err != nil {
		t.Error(err)
	}
	closeNow(t, j)
	again := open(t, dir, Options{CA: ca.cert, FileSize: 1})
	if err := again.Witnessed(seen); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	issue(t, ca, again, "four", "five") // the file is sealed
	closeNow(t, again)
	third := open(t, dir, Options{CA: ca.cert})
	if err := third.Witnessed(seen); err != nil || third.Summary().Counts.Rollbacks != 2 {
		t.Errorf("from the index: %v, %+v", err, third.Summary())
	}
	if s := verify(t, dir, ca); s.Counts.Rollbacks != 2 {
		t.Errorf("%+v", s)
	}
}
