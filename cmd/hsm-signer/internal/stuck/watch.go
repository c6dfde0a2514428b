package stuck

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube/clientset"
	"hsm-signer/policy"
)

const (
	// Interval is the time between two checks of pods that were answered and do not work yet.
	Interval = 15 * time.Second
	// LookTimeout bounds one look.
	LookTimeout = 30 * time.Second

	tick  = time.Second    // while the journal is not open yet
	retry = time.Minute    // between two readings of a journal that cannot be read
	since = 24 * time.Hour // the greatest age of an earlier process's certificates that are checked
)

// A Report is what was found at the last look.
type Report struct {
	Pods  []Pod
	Known bool  // Pods are all that are stuck
	Fault error // why that is not known; nil before the first look
}

// A Watch checks pods that were answered lately. It knows those that an earlier process answered
// from the journal, which it reads once. It is safe for concurrent use.
type Watch struct {
	journal Journal
	client  clientset.Interface
	logger  hclog.Logger
	answers *Answers

	latest poll.Latest[Report]
	fault  poll.Fault // of the latest report
}

// A Journal is read when it is open.
type Journal interface {
	Dir() string
	State() error // nil if it is open and can be written
}

// NewWatch returns a watch; [Watch.Run] starts it.
func NewWatch(j Journal, client clientset.Interface, logger hclog.Logger) *Watch {
	return &Watch{journal: j, client: client, logger: logger, answers: NewAnswers()}
}

// Answered notes that a request, created at that time, has got its certificate.
func (w *Watch) Answered(requester policy.Requester, request string, asked time.Time) {
	// How long ago nobody had the certificate is not known here: the look takes no evidence from
	// it.
	if answer, ok := AnswerTo(requester, request, asked, time.Time{}); ok {
		w.answers.Add(answer, time.Now())
	}
}

// Report returns what was found at the last look.
func (w *Watch) Report() Report { return w.latest.Load() }

// Run looks until the context ends.
func (w *Watch) Run(ctx context.Context) error {
	if !w.readJournal(ctx) {
		return nil
	}
	return poll.Every(ctx, Interval, func(ctx context.Context) { w.look(ctx, time.Now()) })
}

// readJournal adds what the journal knows, as soon as it is open. It returns false if the context
// ended before that.
func (w *Watch) readJournal(ctx context.Context) bool {
	next := tick
	err := poll.Repeat(ctx, nil, func(context.Context) (time.Duration, error) {
		if w.journal.State() != nil {
			return next, nil
		}
		err := w.addFrom(time.Now())
		if err == nil {
			return 0, errRead
		}
		w.note(Report{Fault: fmt.Errorf("the journal in %s: %w", w.journal.Dir(), err)})
		next = retry
		return next, nil
	})
	return errors.Is(err, errRead)
}

// errRead says that the journal was read.
var errRead = errors.New("the journal was read")

func (w *Watch) addFrom(now time.Time) error {
	for issued, err := range journal.List(w.journal.Dir(), journal.Filter{ExpiresAfter: now}) {
		if err != nil {
			return err
		}
		if answer, ok := answerIn(issued); ok && now.Sub(issued.SignedAt) < since {
			w.answers.Add(answer, now)
		}
	}
	return nil
}

// look reads the pods if any may be stuck by now.
func (w *Watch) look(ctx context.Context, now time.Time) {
	if !w.answers.Due(now) {
		w.note(Report{Known: true})
		return
	}
	limited, cancel := context.WithTimeout(ctx, LookTimeout)
	defer cancel()
	pods, err := w.answers.Look(limited, w.client, now)
	if ctx.Err() == nil {
		w.note(Report{pods, err == nil, err})
	}
}

// note keeps the report, and logs each change.
func (w *Watch) note(r Report) {
	before := w.latest.Swap(r)
	if w.fault.Note(r.Fault) == poll.Fails {
		w.logger.Warn("it is not known which pods are stuck without their certificate", "error",
			r.Fault)
	}
	if len(r.Pods) > 0 && len(r.Pods) != len(before.Pods) {
		first := r.Pods[0]
		w.logger.Warn("pods are stuck: they were answered, and run without a certificate; "+
			"delete them",
			"pods", len(r.Pods), "first", first.Namespace+"/"+first.Name, "evidence", first.Why,
			"command", first.Delete())
	}
}
