// Package anchors publishes the trust anchors of the CAs, with which clients verify certificates.
//
// Duty: keep published what the phase of a rotation names: the roots of TRUST_BUNDLE_FILE, those of
// NEXT_TRUST_BUNDLE_FILE, or both.
//
// Contract: only the process that leads writes. While the phase is not clear, what is published
// stays as it is.
package anchors

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/rotation"
	"hsm-signer/issuer"
	"hsm-signer/kube/trustbundle"
)

// publishInterval is the time between two checks of the published anchors.
const publishInterval = 5 * time.Second

// publishTimeout bounds one check of all bundles.
const publishTimeout = 10 * time.Second

// A File is TRUST_BUNDLE_FILE.
type File interface {
	InUse() issuer.Anchors // of the file as it last was without a mistake
}

// A Phase knows whose roots a phase of a rotation publishes.
type Phase interface {
	Publishes() (ca, next bool)
	Unclear() error // why the phase is not known; nil: it is
}

// A Controller leads, or does not.
type Controller interface{ Leads() bool }

// A Publisher keeps the anchors published. A nil one publishes nothing. It is safe for concurrent
// use.
type Publisher struct {
	file       File
	next       issuer.Anchors
	phase      Phase
	place      trustbundle.Place
	controller Controller
	logger     hclog.Logger

	known atomic.Bool // the fault is of the bundles as this process left them
	fault poll.Fault
}

// New returns a publisher of the anchors of the file, and in a rotation of the next CA's, at a
// place. [Publisher.Run] starts it.
func New(file File, next issuer.Anchors, phase Phase, place trustbundle.Place, c Controller,
	logger hclog.Logger) *Publisher {
	return &Publisher{file: file, next: next, phase: phase, place: place, controller: c,
		logger: logger}
}

// Run publishes the anchors until the context ends.
func (p *Publisher) Run(ctx context.Context) error {
	return poll.Every(ctx, publishInterval, p.publish)
}

// publish publishes the anchors if this process leads.
func (p *Publisher) publish(ctx context.Context) {
	if !p.controller.Leads() {
		p.known.Store(false)
		p.fault.Note(nil)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	roots, err := p.wanted()
	if err == nil {
		err = p.place.Publish(ctx, roots.PEM())
	}
	first := !p.known.Swap(true)
	switch change := p.fault.Note(err); {
	case change == poll.Fails:
		p.logger.Error("the trust anchors could not be published", "error", err)
	case err == nil && (first || change == poll.Works):
		p.logger.Info("the trust anchors are published", "as", p.place)
	}
}

// wanted returns what is to be published in the present phase.
func (p *Publisher) wanted() (issuer.Anchors, error) {
	if err := p.phase.Unclear(); err != nil {
		return nil, err
	}
	roots := p.file.InUse()
	switch ca, next := p.phase.Publishes(); {
	case ca && next:
		return roots.With(p.next)
	case next:
		return p.next, nil
	}
	return roots, nil
}

// Holds publishes the anchors if this process leads, and returns why they are not published.
func (p *Publisher) Holds(ctx context.Context) error {
	if p == nil {
		return nil
	}
	p.publish(ctx)
	return p.Fault()
}

// Roots returns the anchors of each CA, in whatever phase.
func (p *Publisher) Roots() rotation.Roots {
	if p == nil {
		return rotation.Roots{}
	}
	return rotation.Roots{CA: p.file.InUse(), Next: p.next}
}

// Fault returns why the anchors are not published, as of the last check; nil if they are.
func (p *Publisher) Fault() error { return p.fault.Err() }

// Published reports whether the bundles hold the anchors; known is false while another process
// publishes them.
func (p *Publisher) Published() (published, known bool) {
	return p.Fault() == nil, p.known.Load()
}
