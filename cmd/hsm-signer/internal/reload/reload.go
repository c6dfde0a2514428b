// Package reload reads files of the configuration again while the process runs: the policy, the
// CA's certificate and the trust anchors.
//
// Contract: a changed file is applied when two checks in a row find the same contents. One that
// cannot be read, has a mistake or does not fit the rest of the configuration is refused, and what
// was read before it stays in use. A refusal is logged, counted and sent as an Event, once, and
// never makes the process unready.
package reload

import (
	"bytes"
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/issuer"
)

// lookInterval is the time between two checks of a file. Polling also sees a change of a
// ConfigMap's file, which is swapped behind a link.
const lookInterval = 2 * time.Second

// A CA is one that may be replaced while the process runs.
type CA interface {
	// CA returns the CA that certificates are issued under now, or would be.
	CA() *issuer.CA
}

// Events are sent about each signer as a whole.
type Events interface{ Warn(reason, message string) }

// A reloadable file has contents of type T that are applied when they change.
type reloadable[T any] interface {
	read() ([]byte, error)
	parse(text []byte) (T, error)
	// apply puts the contents in use. It does nothing if they already are.
	apply(fresh T) error
}

// A watchedFile is applied when it changes. A file that cannot be read, has a mistake or is
// rejected is reported, and the one before stays in use.
type watchedFile[T any] struct {
	file    reloadable[T]
	path    string
	name    string // in words
	stays   string // in words: what stays in use while the file is refused
	reason  string // of the event
	refused prometheus.Gauge
	events  Events
	logger  hclog.Logger

	text    []byte // what the last check read
	applied bool   // it is in use

	fault poll.Fault // why the file as it is now is refused
}

// Watch checks the file until the context ends.
func (w *watchedFile[T]) Watch(ctx context.Context) error {
	return poll.Every(ctx, lookInterval, func(context.Context) { w.look() })
}

// look compares the file with what it was. A change is applied when two checks find the same: a
// file that is being written may read as one that says less. A refused file is tried at each check:
// what it does not fit may change too, such as the trust anchors.
func (w *watchedFile[T]) look() {
	text, err := w.file.read()
	same := err == nil && bytes.Equal(text, w.text)
	if same && w.applied {
		return
	}
	w.text, w.applied = text, false
	var fresh T
	if err == nil {
		fresh, err = w.file.parse(text)
	}
	switch {
	case err == nil && !same:
		return // not yet
	case err == nil:
		err = w.file.apply(fresh)
		w.applied = err == nil
	}
	w.note(err)
}

// note keeps the state of the file, and logs each change.
func (w *watchedFile[T]) note(err error) {
	switch w.fault.Note(err) {
	case poll.Fails:
		w.logger.Error(w.name+" is refused; "+w.stays, "file", w.path, "error", err)
		w.events.Warn(w.reason, w.name+" is refused in its present form, and "+w.stays+
			". Whoever changed it: \"hsm-signer check\" names the mistake")
	case poll.Works:
		w.logger.Info(w.name+" is well again", "file", w.path)
	}
	w.refused.Set(metrics.Number(err != nil))
}

// Refusal returns why the present file is refused, or nil if it is not.
func (w *watchedFile[T]) Refusal() error { return w.fault.Err() }
