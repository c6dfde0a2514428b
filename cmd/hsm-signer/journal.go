package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/hsm"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
)

// journalInterval is the time between two looks at a journal that cannot be opened or written.
const journalInterval = time.Second

// A keptJournal opens the journal when that is possible: on the same node another process may have it
// open until it ends, and a disk may be full or missing.
type keptJournal struct {
	dir     string
	options journal.Options
	logger  hclog.Logger

	opened    chan struct{}                // closed when it is open
	compare   func(*journal.Journal) error // is shown the journal before it is used; nil: nobody is
	suspicion func() error                 // what a witness makes one suspect; nil: nothing

	mu       sync.Mutex
	open     *journal.Journal // nil: not yet
	refusals *journal.Decisions
	opening  bool // one caller is at it
	tried    time.Time
	fault    error // why it is not open, or could not be written at the last look

	told     journal.Head // the head that the log says last
	toldWhen time.Time
}

func newKeptJournal(dir string, options journal.Options) *keptJournal {
	return &keptJournal{dir: dir, options: options, logger: hclog.NewNullLogger(), opened: make(chan struct{})}
}

// get returns the journal, which it tries to open now and then. While one caller opens it, the others do
// not wait.
func (k *keptJournal) get() (*journal.Journal, error) {
	k.mu.Lock()
	switch {
	case k.open != nil:
		defer k.mu.Unlock()
		return k.open, nil
	case k.opening:
		defer k.mu.Unlock()
		return nil, errOpening
	case time.Since(k.tried) < journalInterval:
		defer k.mu.Unlock()
		return nil, k.fault
	}
	k.opening = true
	k.mu.Unlock()
	opened, err := journal.Open(k.dir, k.options)
	if err == nil && k.compare != nil {
		if err = k.compare(opened); err != nil {
			err = errors.Join(err, opened.Close())
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.opening, k.tried = false, time.Now()
	k.note(err)
	if err != nil {
		return nil, err
	}
	if repair := opened.Repaired(); repair != nil {
		k.logger.Warn("the journal ended in an unfinished line, which was moved away", "repair", repair.String())
	}
	k.logger.Info("the journal is open", "dir", k.dir, "id", opened.ID(), "head", opened.Head().String(), "unpublished", len(opened.Unpublished()))
	k.open, k.refusals = opened, journal.OpenDecisions(k.dir, journal.RefusalsLog, 0)
	k.told, k.toldWhen = opened.Head(), time.Now()
	close(k.opened)
	return opened, nil
}

// note keeps how the journal stands, and logs each change. The caller holds the mutex.
func (k *keptJournal) note(err error) {
	if err != nil && (k.fault == nil || k.fault.Error() != err.Error()) {
		k.logger.Error("the journal is not ready; nothing is signed", "dir", k.dir, "error", err)
	}
	k.fault = err
}

// Ready answers nil when the journal takes a new request.
func (k *keptJournal) Ready() error {
	j, err := k.get()
	if err != nil {
		return err
	}
	return j.Ready()
}

// ID is the journal's; it is empty while the journal is not open.
func (k *keptJournal) ID() journal.ID {
	j, err := k.get()
	if err != nil {
		return ""
	}
	return j.ID()
}

// Lookup tells what is known of a request.
func (k *keptJournal) Lookup(uid string) (journal.Record, error) {
	j, err := k.get()
	if err != nil {
		return journal.Record{}, err
	}
	return j.Lookup(uid)
}

// Unpublished lists what is neither published nor orphaned; nothing while the journal is not open.
func (k *keptJournal) Unpublished() []journal.Record {
	j, err := k.get()
	if err != nil {
		return nil
	}
	return j.Unpublished()
}

// Recent lists what was about to be signed in the hour before the journal was opened.
func (k *keptJournal) Recent() []journal.Recent {
	j, err := k.get()
	if err != nil {
		return nil
	}
	return j.Recent()
}

// Append writes an entry.
func (k *keptJournal) Append(ctx context.Context, e journal.Entry) error {
	j, err := k.get()
	if err != nil {
		return err
	}
	return j.Append(ctx, e)
}

// probeTimeout bounds the wait for a line that says that a test signature is made.
const probeTimeout = 5 * time.Second

// probe writes that a test signature is about to be made. It does not open the journal, which may take long.
func (k *keptJournal) probe(ctx context.Context, when hsm.ProbeTime) error {
	k.mu.Lock()
	j := k.open
	k.mu.Unlock()
	if j == nil {
		return fmt.Errorf("the journal is not open: %w", k.state())
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return j.Append(ctx, journal.Probe{When: string(when), Text: hsm.ProbeText})
}

// watch looks at the journal now and then, so that it is opened, and found well again, also when
// nobody asks for a certificate. It closes it in the end.
func (k *keptJournal) watch(ctx context.Context) error {
	ticker := time.NewTicker(journalInterval)
	defer ticker.Stop()
	for {
		err := k.Ready()
		if !errors.Is(err, errOpening) {
			k.mu.Lock()
			k.note(err)
			k.tell(time.Now(), headInterval)
			k.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// headInterval is the time between two lines of the log that say what the head of the journal is.
const headInterval = time.Minute

// tell has the log say what the head of the journal is, when it is another than it said, and that long enough ago. Who
// keeps the log is a witness then. The caller holds the mutex.
func (k *keptJournal) tell(now time.Time, interval time.Duration) {
	if k.open == nil || now.Sub(k.toldWhen) < interval {
		return
	}
	if head := k.open.Head(); head != k.told {
		k.told, k.toldWhen = head, now
		k.logger.Info("the head of the journal", "id", k.open.ID(), "head", head.String())
	}
}

// errOpening: a long journal takes minutes to read and verify, and nobody waits so long to hear how
// things stand.
var errOpening = errors.New("it is being opened, which takes a while when it is long")

// state is how the journal stands, as far as is known. It waits for no disk.
func (k *keptJournal) state() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.opening {
		return errOpening
	}
	if k.open != nil {
		return k.open.State()
	}
	return cmp.Or(k.fault, errNotLooked)
}

// usage is how much of its limits the journal has used; false while it is not open. It waits for nothing.
func (k *keptJournal) usage() (u journal.Usage, open bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open == nil {
		return u, false
	}
	return k.open.Usage(), true
}

// rolledBack returns an error if a witness has shown that the journal was rolled back.
func (k *keptJournal) rolledBack() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open == nil {
		return nil
	}
	return k.open.RolledBack()
}

// suspected returns what a witness makes one suspect, which stops nothing.
func (k *keptJournal) suspected() error {
	if k.suspicion == nil {
		return nil
	}
	return k.suspicion()
}

// summary is what the journal holds, and the number of refusals that are not in their log; false while the
// journal is not open. It waits for nothing.
func (k *keptJournal) summary() (s journal.Summary, dropped int64, open bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open == nil {
		return s, 0, false
	}
	return k.open.Summary(), k.refusals.Dropped(), true
}

// close ends the journal, when all work is done.
func (k *keptJournal) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open == nil {
		return
	}
	err := errors.Join(k.refusals.Close(), k.open.Close())
	k.tell(time.Now(), 0)
	if err != nil {
		k.logger.Error("the journal could not be closed well", "error", err)
	}
}

// Report is [kube.Sink]'s: it records each refusal in a log beside the journal.
func (k *keptJournal) Report(r kube.Report) {
	o, is := r.(kube.Outcome)
	if !is || o.Result != kube.ResultRefused {
		return
	}
	if _, err := k.get(); err == nil {
		k.refusals.Record(decision(o))
	}
}
