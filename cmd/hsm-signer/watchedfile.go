package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// lookInterval is the time between two looks at a file. Looking, and not waiting to be told, also sees the file of a
// ConfigMap, which is swapped behind a link.
const lookInterval = 2 * time.Second

// A watchedFile is one that is taken up when it has changed. A file that cannot be read, has a mistake or is not
// taken is refused, visibly, and what was before stays.
type watchedFile[T any] struct {
	path  string
	read  func() ([]byte, error)
	parse func([]byte) (T, error)
	take  func(T) error // what is in use already is not taken up again

	name    string // in words
	stays   string // in words: what stays as it is while the file is refused
	reason  string // of the event
	logger  hclog.Logger
	refused func(bool)                   // is told at each look that found something else
	warn    func(reason, message string) // as an event

	text    []byte // what the last look read
	settled bool   // it was taken up, or refused

	mu    sync.Mutex
	fault error // why the file as it is now is refused
}

// watch looks at the file until the context ends.
func (w *watchedFile[T]) watch(ctx context.Context) error {
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			w.look()
		}
	}
}

// look compares the file with what it was. A change is taken up when two looks find the same: a file that is being
// written may read as one that says less.
func (w *watchedFile[T]) look() {
	text, err := w.read()
	same := err == nil && bytes.Equal(text, w.text)
	if same && w.settled {
		return
	}
	w.text, w.settled = text, same
	var fresh T
	if err == nil {
		fresh, err = w.parse(text)
	}
	switch {
	case err == nil && !same:
		return // not yet
	case err == nil:
		err = w.take(fresh)
	}
	w.note(err)
}

// note keeps how the file stands, and logs each change.
func (w *watchedFile[T]) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil && (w.fault == nil || w.fault.Error() != err.Error()):
		w.logger.Error(fmt.Sprintf("%s is refused; %s", w.name, w.stays), "file", w.path, "error", err)
		w.warn(w.reason, fmt.Sprintf("%s as it is now is refused, and %s; the log says why", w.name, w.stays))
	case err == nil && w.fault != nil:
		w.logger.Info(w.name+" is well again", "file", w.path)
	}
	w.fault = err
	w.refused(err != nil)
}

// refusal answers why the file as it is now is refused, and nil when it is not.
func (w *watchedFile[T]) refusal() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fault
}
