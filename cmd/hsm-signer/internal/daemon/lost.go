package daemon

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/hsm"
)

// A lostFunc gets the error of a CA that only a person, or another process, can help, and nil for
// one that works or waits. It returns an error if the process must end. A nil lostFunc ends it with
// the first such error.
type lostFunc func(error) error

// note calls the function.
func (f lostFunc) note(err error) error {
	if f == nil {
		return err
	}
	return f(err)
}

// losses knows which CAs of a process are lost. The process ends when all are. Until then those
// that work continue, and a lost one is checked again, since a corrected PIN file helps it.
type losses struct {
	mu  sync.Mutex
	all map[string]error // by CA; nil: it is not lost
}

// of returns the function for a CA.
func (l *losses) of(ca string, logger hclog.Logger) lostFunc {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[string]error{}
	}
	l.all[ca] = nil
	return func(err error) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		before := l.all[ca]
		l.all[ca] = err
		final := l.err()
		switch {
		case final != nil:
		case err != nil && before == nil:
			logger.Error("this CA has failed and signs nothing; the other CAs are served", "error",
				err)
		case err == nil && before != nil:
			logger.Info("this CA works again")
		}
		return final
	}
}

// err returns an error if every CA is lost. The caller must hold mu.
//
// Its exit code must not have a supervisor try a rejected PIN again, so that one counts most. A
// hanging module comes next, because a new process helps it, and does not harm the others.
func (l *losses) err() error {
	var texts []string
	var all []error
	for ca, err := range l.all {
		if err == nil {
			return nil
		}
		texts, all = append(texts, ca+": "+err.Error()), append(all, err)
	}
	if len(all) == 1 {
		return all[0]
	}
	slices.Sort(texts)
	err := fmt.Errorf("every CA has failed:\n  %s", strings.Join(texts, "\n  "))
	switch joined := errors.Join(all...); {
	case errors.Is(joined, hsm.ErrPIN):
		return exit.With(exit.PIN, err)
	case errors.Is(joined, hsm.ErrHung):
		return exit.With(exit.Fault, err)
	default:
		return exit.With(exit.Code(joined), err)
	}
}
