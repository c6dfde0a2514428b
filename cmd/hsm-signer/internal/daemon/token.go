package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/hsm"
)

// A healthyKey is the CA's key in its token.
type healthyKey interface {
	// Healthy returns nil if the key can sign.
	Healthy(ctx context.Context) error
}

// A tokenWatch checks the token periodically, so that it is found again even if nobody requests a
// certificate.
type tokenWatch struct {
	key       healthyKey
	keys      []*loggedKey
	opened    <-chan struct{} // closed when test signatures can be recorded: check again at once
	restarted bool            // its supervisor restarts the process, whatever the exit code
	lost      lostFunc
	logger    hclog.Logger

	state poll.Fault // why the token is not ready; errNotLooked before the first check

	mu    sync.Mutex
	began time.Time // when the check started that has not ended yet; zero if there is none
}

// newTokenWatch returns a watch of the CA's key; [tokenWatch.run] starts it. The attributes of the
// keys are logged.
func newTokenWatch(key healthyKey, keys []*loggedKey, opened <-chan struct{}, restarted bool,
	logger hclog.Logger) *tokenWatch {
	w := &tokenWatch{key: key, keys: keys, opened: opened, restarted: restarted, logger: logger}
	w.state.Note(errNotLooked)
	return w
}

var errNotLooked = errors.New("not looked at yet")

// healthInterval is the time between two checks of the token.
const healthInterval = 2 * time.Second

// run checks the token until the context ends. It returns an error if the process must end: only a
// person can help, or another process ([tokenWatch.ends]), and no other CA works.
func (w *tokenWatch) run(ctx context.Context) error {
	neverReady := true
	return poll.Repeat(ctx, w.opened, func(ctx context.Context) (time.Duration, error) {
		w.begin()
		err := w.look(ctx)
		if ctx.Err() != nil {
			return healthInterval, nil
		}
		w.note(err)
		var final error
		if w.ends(err, neverReady) {
			final = err
		}
		if err := w.lost.note(final); err != nil {
			return 0, err
		}
		neverReady = neverReady && err != nil
		return healthInterval, nil
	})
}

// look checks the token, and logs the attributes of each key as soon as they are known.
func (w *tokenWatch) look(ctx context.Context) error {
	err := w.key.Healthy(ctx)
	if err == nil || warm(err) {
		for _, key := range w.keys {
			key.log(ctx, w.logger)
		}
	}
	return err
}

// ends reports whether the process must end unless another CA works: only a person can help, or
// another process. A pod would be restarted again and again, so there a rejected PIN leaves the
// process running, not ready. The PIN is not tried again until its file has another.
func (w *tokenWatch) ends(err error, neverReady bool) bool {
	return errors.Is(err, hsm.ErrPIN) && !w.restarted || errors.Is(err, hsm.ErrKey) && neverReady ||
		errors.Is(err, hsm.ErrHung)
}

func (w *tokenWatch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began = time.Now()
}

// note keeps the state of the token, and logs each change.
func (w *tokenWatch) note(err error) {
	w.mu.Lock()
	w.began = time.Time{}
	w.mu.Unlock()
	switch change := w.state.Note(err); {
	case change == poll.Works:
		w.logger.Info("the token is ready: it signs with the CA's key")
	case change == poll.Fails && warm(err):
		w.logger.Info("token connected; no test signature yet", "why", err)
	case change == poll.Fails:
		w.logger.Error("the token is not ready; requests stay pending", "error", err)
	}
}

// warm reports whether the token is connected but was not seen to sign, because the journal is not
// ready.
func warm(err error) bool { return errors.Is(err, hsm.ErrUnproven) }

// patience is how long a check may take before the token counts as not ready.
const patience = 15 * time.Second

// noted returns the result of the last check of the token, or that it does not respond.
func (w *tokenWatch) noted() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.began.IsZero() && time.Since(w.began) > patience {
		return fmt.Errorf("the token has not answered since %s: its module hangs",
			w.began.Format(time.RFC3339))
	}
	return w.state.Err()
}

// part returns the state of the token.
func (w *tokenWatch) part() part {
	if err := w.noted(); !warm(err) {
		return part{name: "token", err: err}
	} else {
		return part{name: "token", note: err.Error()}
	}
}

// A keyInToken has attributes, once the token is connected.
type keyInToken interface {
	Attributes(ctx context.Context) (hsm.KeyAttributes, error)
}

// A loggedKey is a key whose wrong attributes are logged once.
type loggedKey struct {
	name   string
	key    keyInToken
	logged bool
}

// log logs wrong attributes of the key as soon as they are known.
func (k *loggedKey) log(ctx context.Context, logger hclog.Logger) {
	if k.logged {
		return
	}
	attributes, err := k.key.Attributes(ctx)
	switch {
	case err != nil:
		return
	case !attributes.Holds():
		logger.Error(strings.ToUpper(k.name)+" CAN LEAVE ITS TOKEN, and is used anyway",
			"attributes", attributes.String())
	case attributes.Doubtful():
		logger.Warn("an attribute of "+k.name+" has an unexpected value, which alone is no "+
			"reason not to use the key", "attributes", attributes.String())
	}
	k.logged = true
}
