package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/hsm"
)

// A Key is one that signs.
type Key interface {
	// Healthy returns nil if the key can sign.
	Healthy(ctx context.Context) error
}

// A NamedKey is a key whose wrong attributes are logged.
type NamedKey struct {
	Name string // in words
	Key  interface {
		// Attributes returns the attributes, once the token is connected.
		Attributes(ctx context.Context) (hsm.KeyAttributes, error)
	}
}

// Losses decide whether the process continues without its key.
type Losses interface {
	// Note gets an error that only a person, or another process, can help, and nil for a key that
	// works or waits. It returns an error if the process must end.
	Note(err error) error
}

// A Watch checks the token periodically, so that it is found again even if nobody requests a
// certificate.
type Watch struct {
	key       Key
	unlogged  []NamedKey
	opened    <-chan struct{} // closed when test signatures can be recorded: check again at once
	restarted bool            // its supervisor restarts the process, whatever the exit code
	losses    Losses
	logger    hclog.Logger

	fault poll.Fault // why the token is not ready; errNotLooked before the first check

	mu    sync.Mutex
	began time.Time // when the check started that has not ended yet; zero if there is none
}

// NewWatch returns a watch of the key that signs; [Watch.Run] starts it. The attributes of the
// named keys are logged. It checks at once when opened is closed: from then on test signatures can
// be recorded. restarted says that the process is restarted, whatever its exit code.
func NewWatch(key Key, named []NamedKey, opened <-chan struct{}, restarted bool, l Losses,
	logger hclog.Logger) *Watch {
	w := &Watch{key: key, unlogged: named, opened: opened, restarted: restarted, losses: l,
		logger: logger}
	w.fault.Note(errNotLooked)
	return w
}

var errNotLooked = errors.New("not looked at yet")

// checkInterval is the time between two checks of the token.
const checkInterval = 2 * time.Second

// Run checks the token until the context ends. It returns an error if the process must end: only a
// person can help, or another process ([Watch.ends]), and no other CA works.
func (w *Watch) Run(ctx context.Context) error {
	neverReady := true
	return poll.Repeat(ctx, w.opened, func(ctx context.Context) (time.Duration, error) {
		w.begin()
		err := w.look(ctx)
		if ctx.Err() != nil {
			return checkInterval, nil
		}
		w.note(err)
		var final error
		if w.ends(err, neverReady) {
			final = err
		}
		if err := w.losses.Note(final); err != nil {
			return 0, err
		}
		neverReady = neverReady && err != nil
		return checkInterval, nil
	})
}

// look checks the token, and logs the attributes of each key as soon as they are known.
func (w *Watch) look(ctx context.Context) error {
	err := w.key.Healthy(ctx)
	if err == nil || warm(err) {
		w.unlogged = slices.DeleteFunc(w.unlogged,
			func(key NamedKey) bool { return key.log(ctx, w.logger) })
	}
	return err
}

// ends reports whether the process must end unless another CA works: only a person can help, or
// another process. A pod would be restarted again and again, so there a rejected PIN leaves the
// process running, not ready. The PIN is not tried again until its file has another.
func (w *Watch) ends(err error, neverReady bool) bool {
	return errors.Is(err, hsm.ErrPIN) && !w.restarted || errors.Is(err, hsm.ErrKey) && neverReady ||
		errors.Is(err, hsm.ErrHung)
}

func (w *Watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began = time.Now()
}

// note keeps the state of the token, and logs each change.
func (w *Watch) note(err error) {
	w.mu.Lock()
	w.began = time.Time{}
	w.mu.Unlock()
	switch change := w.fault.Note(err); {
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

// Fault returns why the token is not ready, as the last check found it, or that it does not
// respond. It is [hsm.ErrUnproven] if the token is connected, and was not seen to sign because the
// journal is not ready.
func (w *Watch) Fault() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.began.IsZero() && time.Since(w.began) > patience {
		return fmt.Errorf("the token has not answered since %s: its module hangs",
			w.began.Format(time.RFC3339))
	}
	return w.fault.Err()
}

// log logs wrong attributes of the key, and reports whether they are known.
func (k NamedKey) log(ctx context.Context, logger hclog.Logger) (known bool) {
	attributes, err := k.Key.Attributes(ctx)
	switch {
	case err != nil:
		return false
	case !attributes.Holds():
		logger.Error(strings.ToUpper(k.Name)+" CAN LEAVE ITS TOKEN, and is used anyway",
			"attributes", attributes.String())
	case attributes.Doubtful():
		logger.Warn("an attribute of "+k.Name+" has an unexpected value, which alone is no "+
			"reason not to use the key", "attributes", attributes.String())
	}
	return true
}
