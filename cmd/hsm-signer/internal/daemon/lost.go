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

// losses knows which CAs of a process are lost. The process ends when all are. Until then those
// that work continue, and a lost one is checked again, since a corrected PIN file helps it.
type losses struct {
	mu  sync.Mutex
	all map[string]error // by CA; nil: it is not lost
}

// of adds a CA, which is not lost.
func (l *losses) of(ca string, logger hclog.Logger) *loss {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[string]error{}
	}
	l.all[ca] = nil
	return &loss{process: l, ca: ca, logger: logger}
}

// A loss is that of one CA of a process.
type loss struct {
	process *losses
	ca      string
	logger  hclog.Logger
}

// Note is [keyring.Losses]'. It logs when the CA is lost, and when it works again.
func (l *loss) Note(err error) error {
	all := l.process
	all.mu.Lock()
	defer all.mu.Unlock()
	before := all.all[l.ca]
	all.all[l.ca] = err
	final := all.err()
	switch {
	case final != nil:
	case err != nil && before == nil:
		l.logger.Error("this CA has failed and signs nothing; the other CAs are served", "error",
			err)
	case err == nil && before != nil:
		l.logger.Info("this CA works again")
	}
	return final
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
