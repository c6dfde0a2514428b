package journal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// runInterval is the time between two attempts with a journal that cannot be opened or written.
const runInterval = time.Second

// headInterval is the time between two lines of the log that say what the head of the journal is.
const headInterval = time.Minute

// Why a [Journal] is not open yet.
var (
	errNotTried = errors.New("not looked at yet")
	// errOpening: a long journal takes minutes to read and verify.
	errOpening = errors.New("it is being opened, which takes a while when it is long")
)

// A Witness has kept heads of journals.
type Witness interface {
	// Opened is shown a journal that was just opened. On an error the journal is closed again.
	Opened(w *Writer) error
}

// A Logger takes lines with keys and values, as hclog.Logger does.
type Logger interface {
	Info(message string, keysAndValues ...any)
	Warn(message string, keysAndValues ...any)
	Error(message string, keysAndValues ...any)
}

// A Journal is the journal in a directory, whether or not it can be opened now: another process may
// have it open until it ends, and a disk may be full or missing. [Journal.Run] opens it, tries
// again while that fails, and closes it; nothing else waits for that. It is safe for concurrent
// use.
type Journal struct {
	dir     string
	options Options
	witness Witness
	logger  Logger
	opened  chan struct{} // closed when it is open

	mu       sync.Mutex
	writer   *Writer // nil: not open yet
	refusals *Decisions
	opening  bool
	fault    error // why it is not open, or could not be written at the last look

	logged   Head // the head that the log says last
	loggedAt time.Time
}

// New returns the journal in a directory; [Journal.Run] opens it. A nil witness has kept nothing.
func New(dir string, o Options, witness Witness, logger Logger) *Journal {
	return &Journal{
		dir: dir, options: o, witness: witness, logger: logger, opened: make(chan struct{}),
		fault: errNotTried,
	}
}

// Run looks after the journal until the context ends, and then closes it: end it after everything
// that writes to the journal.
func (j *Journal) Run(ctx context.Context) error {
	defer j.close()
	ticker := time.NewTicker(runInterval)
	defer ticker.Stop()
	for {
		j.look()
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// look opens the journal if it is not open, and otherwise finds out whether it can be written. It
// logs each change, and the head from time to time: whoever keeps the log is a witness then.
func (j *Journal) look() {
	w := j.Writer()
	if w == nil {
		j.note(j.open())
		return
	}
	j.note(w.Ready())
	j.logHead(headInterval)
}

// open opens the journal, and has the witness compare it.
func (j *Journal) open() error {
	j.setOpening(true)
	defer j.setOpening(false)
	w, err := Open(j.dir, j.options)
	if err != nil {
		return err
	}
	if j.witness != nil {
		if err := j.witness.Opened(w); err != nil {
			return errors.Join(err, w.Close())
		}
	}
	if repair := w.Repaired(); repair != nil {
		j.logger.Warn("the journal ended in an unfinished line, which was moved away", "repair",
			repair.String())
	}
	j.logger.Info("the journal is open", "dir", j.dir, "id", w.ID(), "head", w.Head().String(),
		"unpublished", len(w.Unpublished()))
	j.mu.Lock()
	defer j.mu.Unlock()
	j.writer, j.refusals, j.opening = w, OpenDecisions(j.dir, RefusalsLog, 0), false
	j.logged, j.loggedAt = w.Head(), time.Now()
	close(j.opened)
	return nil
}

func (j *Journal) setOpening(opening bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.opening = opening
}

// note keeps how the journal stands, and logs each change.
func (j *Journal) note(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil && (j.fault == nil || j.fault.Error() != err.Error()) {
		j.logger.Error("the journal is not ready; nothing is signed", "dir", j.dir, "error", err)
	}
	j.fault = err
}

// logHead logs the head of the journal if it has changed and was logged so long ago.
func (j *Journal) logHead(interval time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	head := j.writer.Head()
	if head == j.logged || time.Since(j.loggedAt) < interval {
		return
	}
	j.logged, j.loggedAt = head, time.Now()
	j.logger.Info("the head of the journal", "id", j.writer.ID(), "head", head.String())
}

func (j *Journal) close() {
	w := j.Writer()
	if w == nil {
		return
	}
	if err := errors.Join(j.refusals.Close(), w.Close()); err != nil {
		j.logger.Error("the journal could not be closed well", "error", err)
	}
	j.logHead(0)
}

// Dir returns the directory.
func (j *Journal) Dir() string { return j.dir }

// Opened returns a channel that is closed when the journal is open for the first time.
func (j *Journal) Opened() <-chan struct{} { return j.opened }

// Writer returns the open journal; nil if it is not open yet.
func (j *Journal) Writer() *Writer {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.writer
}

// State returns nil if the journal takes a new request, as far as is known. It waits for no disk.
func (j *Journal) State() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.opening:
		return errOpening
	case j.writer != nil:
		return j.writer.State()
	}
	return j.fault
}

// use returns the open journal, or why it is not open.
func (j *Journal) use() (*Writer, error) {
	if w := j.Writer(); w != nil {
		return w, nil
	}
	return nil, fmt.Errorf("it is not open: %w", j.State())
}

// Ready returns nil if the journal takes a new request. See [Writer.Ready].
func (j *Journal) Ready() error {
	w, err := j.use()
	if err != nil {
		return err
	}
	return w.Ready()
}

// ID is the journal's; it is empty while the journal is not open.
func (j *Journal) ID() ID {
	if w := j.Writer(); w != nil {
		return w.ID()
	}
	return ""
}

// Lookup returns what is known of a request. See [Writer.Lookup].
func (j *Journal) Lookup(uid string) (Record, error) {
	w, err := j.use()
	if err != nil {
		return Record{}, err
	}
	return w.Lookup(uid)
}

// Unpublished returns what is neither published nor orphaned; nothing while the journal is not
// open.
func (j *Journal) Unpublished() []Record {
	if w := j.Writer(); w != nil {
		return w.Unpublished()
	}
	return nil
}

// Recent returns the intents of the hour before the journal was opened; nothing while it is not
// open.
func (j *Journal) Recent() []Recent {
	if w := j.Writer(); w != nil {
		return w.Recent()
	}
	return nil
}

// Rotation returns the last line of its kind; nil if there is none, or the journal is not open.
func (j *Journal) Rotation() *Rotation {
	if w := j.Writer(); w != nil {
		return w.Rotation()
	}
	return nil
}

// Append writes an entry. See [Writer.Append].
func (j *Journal) Append(ctx context.Context, e Entry) error {
	w, err := j.use()
	if err != nil {
		return err
	}
	return w.Append(ctx, e)
}

// Refused records a refusal in the log next to the journal. While the journal is not open, nothing
// is refused.
func (j *Journal) Refused(d Decision) {
	if j.Writer() != nil {
		j.refusals.Record(d)
	}
}

// RefusalsDropped is the number of refusals that are missing in their log.
func (j *Journal) RefusalsDropped() int64 {
	if j.Writer() == nil {
		return 0
	}
	return j.refusals.Dropped()
}

// RolledBack returns an error if a witness has shown that the journal was rolled back.
func (j *Journal) RolledBack() error {
	if w := j.Writer(); w != nil {
		return w.RolledBack()
	}
	return nil
}
