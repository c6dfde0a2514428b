// Package credential holds the credential with which hsm-signer asks the API server: it loads
// kubeconfig files, applies a renewed credential without a restart, and knows when it expires.
//
// Contract: each file, and each file or plugin that a kubeconfig names, passes the rules of package
// trustedfile each time it is read. A changed kubeconfig may bring another credential and nothing
// else: one with another API server, another CA for it or another identity to impersonate is
// refused, and the one before stays in use.
package credential

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/kube/clientset"
)

// A Source is where the credential comes from. It is safe for concurrent use, except that only one
// goroutine may call [Source.Look] or [Source.Watch].
type Source struct {
	files *Files                // nil: the pod's service account
	wrap  transport.WrapperFunc // of every request

	text    []byte // what the last call of Look read
	settled bool   // it was applied, or refused
	inUse   *loaded

	transport swapped
	presented atomic.Pointer[string] // the latest token of a plugin

	mu      sync.Mutex
	config  *rest.Config // in use
	refusal error
}

// A swapped transport passes each request to the one that is in use.
type swapped struct {
	inUse atomic.Pointer[http.RoundTripper]
}

// RoundTrip is [http.RoundTripper]'s.
func (s *swapped) RoundTrip(r *http.Request) (*http.Response, error) {
	return (*s.inUse.Load()).RoundTrip(r)
}

// InPod returns the source of the pod's own service account, whose token kubelet renews and
// client-go reads again. See [Open] for wrap.
func InPod(config *rest.Config, wrap transport.WrapperFunc) (*Source, error) {
	s := &Source{wrap: wrap}
	return s, s.use(config)
}

// Open returns the source of kubeconfig files. Every request of the client goes through what wrap
// returns, unless wrap is nil. Open returns an error if a file cannot be read, is not to be
// trusted, or has a mistake.
func Open(files Files, wrap transport.WrapperFunc) (*Source, error) {
	s := &Source{files: &files, wrap: wrap}
	first, err := files.load()
	if err != nil {
		return nil, err
	}
	if err := s.use(first.config); err != nil {
		return nil, err
	}
	s.inUse, s.text, s.settled = first, first.text, true
	s.files.Exposed = func(error) {} // the caller was warned once
	return s, nil
}

// use has all further requests present the credential of the configuration.
func (s *Source) use(config *rest.Config) error {
	config = s.tuned(config)
	transport, err := rest.TransportFor(config)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config = config
	s.transport.inUse.Store(&transport)
	s.presented.Store(nil)
	return nil
}

// tuned returns the configuration with what is the same for every client of hsm-signer. It does not
// limit its rate: the API server's flow control and WORKERS do.
func (s *Source) tuned(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	if config.ExecProvider != nil {
		config.Wrap(s.observe)
	}
	config.QPS, config.UserAgent = -1, "hsm-signer/"+buildinfo.Version()
	// The API server compresses each event of a watch by itself. To undo that was 3 % of the CPU
	// time of a certificate here, and doing it takes more there.
	config.DisableCompression = true
	config.ContentConfig = rest.ContentConfig{
		ContentType:        "application/vnd.kubernetes.protobuf",
		AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
	}
	config.Wrap(s.wrap)
	return config
}

// Client returns a client that presents the credential in use at each request.
func (s *Source) Client() (*clientset.Clientset, error) {
	config := rest.AnonymousClientConfig(s.current())
	return clientset.New(config, &http.Client{Transport: &s.transport})
}

// Server returns the API server's address.
func (s *Source) Server() string { return s.current().Host }

// current returns the configuration in use.
func (s *Source) current() *rest.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.config
}

// Look reads the files again, and applies a change that two calls in a row find: a file that is
// being written may read as one that says less.
func (s *Source) Look() {
	if s.files == nil {
		return
	}
	fresh, err := s.files.load()
	var text []byte
	if err == nil {
		text = fresh.text
	}
	same := err == nil && bytes.Equal(text, s.text)
	if same && s.settled {
		return
	}
	s.text, s.settled = text, same
	switch {
	case err == nil && !same:
		return // not yet
	case err == nil:
		err = s.replace(fresh)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusal = err
}

// replace applies another credential, and returns an error if more than that has changed.
func (s *Source) replace(fresh *loaded) error {
	if err := s.inUse.allows(fresh); err != nil {
		return err
	}
	if bytes.Equal(fresh.text, s.inUse.text) { // it is back to what it was
		return nil
	}
	if err := s.use(fresh.config); err != nil {
		return err
	}
	s.inUse = fresh
	return nil
}

// Refusal returns why the files in their present form are not used, or nil if they are.
func (s *Source) Refusal() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusal
}

// lookInterval is the time between two reads of the files.
const lookInterval = 2 * time.Second

// Events sends an Event about the process as a whole.
type Events interface{ Warn(reason, message string) }

// Watch applies changes of the files until the context ends, and logs them. Each refusal is also an
// Event, unless events is nil.
func (s *Source) Watch(ctx context.Context, events Events, logger hclog.Logger) error {
	before, refused := s.inUse, error(nil)
	return poll.Every(ctx, lookInterval, func(context.Context) {
		s.Look()
		err := s.Refusal()
		switch {
		case err != nil && (refused == nil || refused.Error() != err.Error()):
			logger.Error("the changed kubeconfig is refused; the credential before it stays in use",
				"error", err)
			if events != nil {
				events.Warn("KubeconfigRefused", "the changed kubeconfig is refused, and the "+
					"credential before it stays in use. Whoever changed it: \"hsm-signer "+
					"check\" names the mistake")
			}
		case err == nil && refused != nil:
			logger.Info("the kubeconfig is accepted again")
		}
		if s.inUse != before {
			logger.Info("the credential for the API server was replaced, and is in use",
				"credential", Describe(s.Expiries(), time.Now()))
		}
		before, refused = s.inUse, err
	})
}

// errChanged is why a changed kubeconfig is refused.
var errChanged = errors.New("a changed kubeconfig may bring another credential only: restore it, " +
	"or restart hsm-signer if the change is intended")
