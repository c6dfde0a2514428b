package daemon

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/poll"
)

// lookInterval is the time between two checks of a file. Polling also sees a change of a
// ConfigMap's file, which is swapped behind a link.
const lookInterval = 2 * time.Second

// A watchedFile is applied when it changes. A file that cannot be read, has a mistake or is
// rejected is reported, and the one before stays in use.
type watchedFile[T any] struct {
	path  string
	read  func() ([]byte, error)
	parse func([]byte) (T, error)
	take  func(T) error // does nothing if it is already in use

	name    string // in words
	stays   string // in words: what stays in use while the file is refused
	reason  string // of the event
	logger  hclog.Logger
	refused func(bool)                   // is called at each check that found a change
	warn    func(reason, message string) // as an event

	text    []byte // what the last check read
	settled bool   // it was applied, or refused

	mu    sync.Mutex
	fault error // why the file as it is now is refused
}

// watch checks the file until the context ends.
func (w *watchedFile[T]) watch(ctx context.Context) error {
	return poll.Every(ctx, lookInterval, func(context.Context) { w.look() })
}

// look compares the file with what it was. A change is applied when two checks find the same: a
// file that is being written may read as one that says less.
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

// note keeps the state of the file, and logs each change.
func (w *watchedFile[T]) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case poll.IsNews(err, w.fault):
		w.logger.Error(fmt.Sprintf("%s is refused; %s", w.name, w.stays), "file", w.path, "error", err)
		w.warn(w.reason,
			fmt.Sprintf("%s is refused in its present form, and %s; the log says why", w.name,
				w.stays))
	case err == nil && w.fault != nil:
		w.logger.Info(w.name+" is well again", "file", w.path)
	}
	w.fault = err
	w.refused(err != nil)
}

// refusal returns why the present file is refused, or nil if it is not.
func (w *watchedFile[T]) refusal() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fault
}
