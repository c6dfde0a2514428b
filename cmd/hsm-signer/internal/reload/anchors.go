package reload

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/issuer"
)

// Anchors are the certificates of TRUST_BUNDLE_FILE, which are read again when the file changes.
// They always trust the CA of CA_CERT_FILE.
type Anchors struct {
	watchedFile[issuer.Anchors]
	ca    CA
	mu    sync.Mutex // held while these or the CA are replaced: each is checked against the other
	inUse atomic.Pointer[issuer.Anchors]
}

// NewAnchors returns the anchors as they were loaded, which trust the CA. [Anchors.Watch] reads
// them again.
func NewAnchors(path string, loaded issuer.Anchors, ca CA, events Events, m *metrics.Metrics,
	logger hclog.Logger) *Anchors {
	a := &Anchors{ca: ca}
	a.inUse.Store(&loaded)
	a.watchedFile = watchedFile[issuer.Anchors]{
		file: a, path: path, name: "the file of the trust anchors",
		stays: "the trust anchors before it stay published", reason: "TrustBundleRefused",
		refused: m.TrustBundleRefused, events: events, logger: logger,
	}
	return a
}

// InUse returns the anchors that are to be published.
func (a *Anchors) InUse() issuer.Anchors { return *a.inUse.Load() }

func (a *Anchors) read() ([]byte, error) { return config.CARules.Read(a.path) }

func (a *Anchors) parse(text []byte) (issuer.Anchors, error) { return issuer.ParseAnchors(text) }

// apply puts other anchors in use, unless they do not trust the CA.
func (a *Anchors) apply(fresh issuer.Anchors) error {
	if fresh.PEM() == a.InUse().PEM() {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := fresh.Trust(a.ca.CA()); err != nil {
		return err
	}
	a.inUse.Store(&fresh)
	a.logger.Warn("the trust anchors were replaced", "file", a.path, "certificates", len(fresh))
	return nil
}

// replace calls by with another certificate of the CA, unless the anchors do not trust it. They do
// not change meanwhile. Nil ones trust every CA.
func (a *Anchors) replace(fresh *issuer.CA, by func(*issuer.CA) error) error {
	if a == nil {
		return by(fresh)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.InUse().Trust(fresh); err != nil {
		return fmt.Errorf("%w to TRUST_BUNDLE_FILE first", err)
	}
	return by(fresh)
}

// nextAnchors are the certificates of NEXT_TRUST_BUNDLE_FILE, which are not read again.
type nextAnchors issuer.Anchors

// replace calls by with another certificate of the next CA of a rotation, unless the anchors do not
// trust it, in every phase: that is also demanded at the start. Nil ones trust every CA.
func (a nextAnchors) replace(fresh *issuer.CA, by func(*issuer.CA) error) error {
	if a == nil {
		return by(fresh)
	}
	if err := issuer.Anchors(a).Trust(fresh); err != nil {
		return fmt.Errorf("%w to NEXT_TRUST_BUNDLE_FILE first, start hsm-signer again, and let "+
			"clients get it", err)
	}
	return by(fresh)
}
