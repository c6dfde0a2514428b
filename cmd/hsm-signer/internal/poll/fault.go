package poll

import (
	"sync"
	"time"
)

// A Change says how a [Fault] has changed.
type Change int

// Every Change there is.
const (
	Same  Change = iota // the same error as before, or still none
	Fails               // a new error: worth a line of the log
	Works               // no error any more
)

// A Fault is what is wrong with something that is checked again and again. The zero value is no
// fault. It is safe for concurrent use.
type Fault struct {
	mu    sync.Mutex
	err   error
	since time.Time
}

// Note keeps the result of a check, and returns how that differs from the one before. Errors with
// the same text are the same.
func (f *Fault) Note(err error) Change {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.err
	f.err = err
	if (err == nil) != (before == nil) {
		f.since = time.Now()
	}
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		return Fails
	case err == nil && before != nil:
		return Works
	}
	return Same
}

// Err returns the error of the last check; nil if there is none.
func (f *Fault) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Since returns when the fault came, with whatever errors since; zero if there is none.
func (f *Fault) Since() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		return time.Time{}
	}
	return f.since
}
