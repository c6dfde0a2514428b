package daemon

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/rotation"
	"hsm-signer/issuer"
	"hsm-signer/kube/trustbundle"
)

// anchors are the certificates of TRUST_BUNDLE_FILE, which are read again when the file changes.
// They always trust the CA of CA_CERT_FILE.
type anchors struct {
	watchedFile[issuer.Anchors]
	ca    caHolder
	inUse atomic.Pointer[issuer.Anchors]
}

func newAnchors(s *config.Service, ca caHolder, events eventSender, m *metrics.Metrics,
	logger hclog.Logger) *anchors {
	a := &anchors{ca: ca}
	a.inUse.Store(&s.Anchors)
	a.watchedFile = watchedFile[issuer.Anchors]{
		file: a, path: s.TrustBundleFile, name: "the file of the trust anchors",
		stays: "the trust anchors before it stay published", reason: "TrustBundleRefused",
		refused: m.TrustBundleRefused, events: events, logger: logger,
	}
	return a
}

func (a *anchors) read() ([]byte, error) { return config.CARules.Read(a.path) }

func (a *anchors) parse(text []byte) (issuer.Anchors, error) { return issuer.ParseAnchors(text) }

// apply puts other anchors in use, unless they do not trust the CA.
func (a *anchors) apply(fresh issuer.Anchors) error {
	if fresh.PEM() == a.inUse.Load().PEM() {
		return nil
	}
	if err := fresh.Trust(a.ca.CA()); err != nil {
		return err
	}
	a.inUse.Store(&fresh)
	a.logger.Warn("the trust anchors were replaced", "file", a.path, "certificates", len(fresh))
	return nil
}

// publishInterval is the time between two checks of the published anchors.
const publishInterval = 5 * time.Second

// publishTimeout bounds one check of all bundles.
const publishTimeout = 10 * time.Second

// A bundlePublisher keeps the anchors published while this process leads: those of
// TRUST_BUNDLE_FILE, and in a rotation of the CA those of NEXT_TRUST_BUNDLE_FILE, as the phase
// says.
type bundlePublisher struct {
	anchors    *anchors
	next       issuer.Anchors
	phase      publishedPhase
	place      trustbundle.Place
	controller bundleController
	logger     hclog.Logger

	known atomic.Bool // the fault is of the bundles as this process left them
	fault poll.Fault
}

// A publishedPhase knows whose roots a phase publishes.
type publishedPhase interface {
	Publishes() (ca, next bool)
	Unclear() error
}

// A bundleController leads, or does not, and sends Events.
type bundleController interface {
	eventSender
	Leads() bool
}

// newBundle returns what publishes the anchors, and has its metric shown. It returns nil without
// TRUST_BUNDLE_FILE.
func newBundle(s *config.Service, ca caHolder, phase publishedPhase, controller bundleController,
	m *metrics.Metrics, logger hclog.Logger) *bundlePublisher {
	if s.Anchors == nil {
		return nil
	}
	b := &bundlePublisher{anchors: newAnchors(s, ca, controller, m, logger), phase: phase,
		place: s.TrustBundlePlace(), controller: controller, logger: logger}
	if s.Next != nil {
		b.next = s.Next.Anchors
	}
	m.Registry.MustRegister(metrics.TrustBundleCollector{Bundle: b})
	return b
}

// run publishes the anchors until the context ends.
func (b *bundlePublisher) run(ctx context.Context) error {
	return poll.Every(ctx, publishInterval, b.publish)
}

// publish publishes the anchors if this process leads.
func (b *bundlePublisher) publish(ctx context.Context) {
	if !b.controller.Leads() {
		b.known.Store(false)
		b.fault.Note(nil)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	roots, err := b.wanted()
	if err == nil {
		err = b.place.Publish(ctx, roots.PEM())
	}
	first := !b.known.Swap(true)
	switch change := b.fault.Note(err); {
	case change == poll.Fails:
		b.logger.Error("the trust anchors could not be published", "error", err)
	case err == nil && (first || change == poll.Works):
		b.logger.Info("the trust anchors are published", "as", b.place)
	}
}

// wanted returns what is to be published in the present phase.
func (b *bundlePublisher) wanted() (issuer.Anchors, error) {
	if err := b.phase.Unclear(); err != nil {
		return nil, err
	}
	roots := *b.anchors.inUse.Load()
	switch ca, next := b.phase.Publishes(); {
	case ca && next:
		return roots.With(b.next)
	case next:
		return b.next, nil
	}
	return roots, nil
}

// Holds publishes the anchors, and returns why they are not published. A nil publisher has none.
func (b *bundlePublisher) Holds(ctx context.Context) error {
	if b == nil {
		return nil
	}
	b.publish(ctx)
	return b.fault.Err()
}

// Roots returns the anchors of each CA, in whatever phase. A nil publisher has none.
func (b *bundlePublisher) Roots() rotation.Roots {
	if b == nil {
		return rotation.Roots{}
	}
	return rotation.Roots{CA: *b.anchors.inUse.Load(), Next: b.next}
}

// trust returns nil if the anchors of TRUST_BUNDLE_FILE trust the CA, or there are none.
func (b *bundlePublisher) trust(ca *issuer.CA) error {
	if b == nil {
		return nil
	}
	if err := b.anchors.inUse.Load().Trust(ca); err != nil {
		return fmt.Errorf("%w to TRUST_BUNDLE_FILE first", err)
	}
	return nil
}

// trustNext is trust for the next CA of a rotation and NEXT_TRUST_BUNDLE_FILE, in every phase: it
// is also demanded at the start.
func (b *bundlePublisher) trustNext(ca *issuer.CA) error {
	if b == nil {
		return nil
	}
	if err := b.next.Trust(ca); err != nil {
		return fmt.Errorf("%w to NEXT_TRUST_BUNDLE_FILE first, start hsm-signer again, and let "+
			"clients get it", err)
	}
	return nil
}

// Published reports whether the bundles hold the anchors; known is false while another process
// publishes them.
func (b *bundlePublisher) Published() (published, known bool) {
	return b.fault.Err() == nil, b.known.Load()
}

// remarks are the states of the file and of what is published. A nil publisher has none.
func (b *bundlePublisher) remarks() []part {
	if b == nil {
		return nil
	}
	return []part{{name: "trust_bundle_file", err: b.anchors.refusal()},
		{name: "trust_bundle", err: b.fault.Err()}}
}
