package expiry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/kube/clientset"
)

const (
	scanInterval = time.Hour        // between two readings of the journal
	lookInterval = time.Minute      // between two reads of the pods whose certificates end soon
	tick         = time.Second      // while the journal is not open yet
	lookTimeout  = 30 * time.Second // of one look
)

// A Report is what was found at the last look.
type Report struct {
	At     time.Time      // when the journal was last read; zero: not yet
	Valid  int            // certificates that are valid, whoever has them
	Within [len(Days)]int // of these, those that end within so many days
	Found                 // its fault is also that of the journal
}

// A Watch reads the journal periodically, and finds out which pods live. It is safe for concurrent
// use.
type Watch struct {
	journal Journal
	client  clientset.Interface
	logger  hclog.Logger

	// Only Run touches these.
	census  census
	scanned time.Time // when the census is of
	rescan  time.Time // not before
	looked  time.Time

	latest poll.Latest[Report]
	fault  poll.Fault // of the latest report
}

// A Journal is read when it is open.
type Journal interface {
	Dir() string
	State() error // nil if it is open and can be written
}

// NewWatch returns a watch of the journal; [Watch.Run] starts it.
func NewWatch(j Journal, client clientset.Interface, logger hclog.Logger) *Watch {
	return &Watch{journal: j, client: client, logger: logger}
}

// Report is what was found at the last look.
func (w *Watch) Report() Report { return w.latest.Load() }

// Run looks until the context ends.
func (w *Watch) Run(ctx context.Context) error {
	return poll.Every(ctx, tick, func(ctx context.Context) { w.look(ctx, time.Now()) })
}

// look does what is due.
func (w *Watch) look(ctx context.Context, now time.Time) {
	if w.journal.State() != nil {
		return // what was found before still holds
	}
	var fault error
	switch {
	case !now.Before(w.rescan):
		fault = w.scan(now)
	case now.Sub(w.looked) < lookInterval:
		return
	}
	w.looked = now
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	found := find(ctx, w.client, endSoon(w.census.ending, now))
	found.Fault = errors.Join(fault, found.Fault)
	w.note(Report{At: w.scanned, Valid: w.census.valid, Within: w.census.within, Found: found})
}

// scan reads the journal; when it cannot be read, what was read before is kept.
func (w *Watch) scan(now time.Time) error {
	w.rescan = now.Add(lookInterval)
	c, err := scan(w.journal.Dir(), now, now.Add(scanInterval), Soon, false)
	if err != nil {
		return fmt.Errorf("the journal in %s: %w", w.journal.Dir(), err)
	}
	w.census, w.scanned, w.rescan = c, now, now.Add(scanInterval)
	return nil
}

func endSoon(all []Certificate, now time.Time) []Certificate {
	var some []Certificate
	for _, c := range all {
		if Soon(c, now) {
			some = append(some, c)
		}
	}
	return some
}

// note keeps the report, and logs what has become different.
func (w *Watch) note(r Report) {
	before := w.latest.Swap(r)
	if w.fault.Note(r.Fault) == poll.Fails {
		w.logger.Warn("it is not known which pods will outlive their certificates", "error",
			r.Fault)
	}
	if len(r.Pods) > 0 && len(r.Pods) != len(before.Pods) {
		first := r.Pods[0]
		ending, ended := r.Count(time.Now())
		w.logger.Warn("live pods have certificates that end soon or have ended, and nothing "+
			"renews them: restart them", "ending", ending, "ended", ended,
			"first",
			first.Pod.Namespace+"/"+first.Pod.Name, "notAfter", first.NotAfter, "command",
			first.Pod.Restart())
	}
}
