package journal

import (
	"iter"
	"time"
)

// An Event is one line about a certificate, or about all of them: a [Rollback].
type Event struct {
	Seq  uint64    // of the line
	Time time.Time // of the line
	Kind Kind
	Why  string // of an [Orphaned] or an [Unconfirmed]
	Lost Head   // of a [Rollback]: the head that is missing
}

// Find goes through the certificates whose intents match, with their history up to the publication.
// Its order, its errors and what it verifies are those of [List]. Unlike List it also has the
// certificates that are only [Intended]. It remembers only those that match and are not published.
func Find(dir string, match func(*Intent) bool) iter.Seq2[*Issued, error] {
	return func(yield func(*Issued, error) bool) {
		f := &finder{lister{unsigned: true, yield: yield, open: map[string]*Issued{}}, match}
		f.read(dir, f.line)
	}
}

type finder struct {
	lister
	match func(*Intent) bool
}

func (f *finder) line(line Line) error {
	event := Event{Seq: line.Seq, Time: line.Time, Kind: line.Kind()}
	switch e := line.Entry.(type) {
	case Intent:
		return f.intent(e, event)
	case Orphaned:
		event.Why = e.Why
	case Unconfirmed:
		event.Why = e.Why
	case Rollback:
		event.Lost = Head{e.HeadSeq, e.HeadSHA256}
		for _, i := range f.open {
			i.History = append(i.History, event)
		}
		return nil
	}
	i := f.open[requestOf(line.Entry)]
	if i == nil {
		return nil
	}
	i.History = append(i.History, event)
	return f.lister.line(line)
}

// intent opens a certificate that matches. One that does not match ends a former one of its
// request.
func (f *finder) intent(e Intent, event Event) error {
	if !f.match(&e) {
		former := f.open[e.UID]
		if former == nil {
			return nil
		}
		delete(f.open, e.UID)
		return f.give(former)
	}
	if err := f.lister.intent(e); err != nil {
		return err
	}
	cert, err := ParseTBS(e.TBS)
	if err != nil {
		return err
	}
	i := f.open[e.UID]
	i.History = []Event{event}
	return i.says(cert)
}
