// Package daemon is what "run" runs.
//
// Duty: put together, for each CA, the controller, the issuer, the keys, the journal and what
// watches them; start and stop them in the right order; serve /readyz, the metrics and the status
// page; and end the process if no CA works and only a person can help.
//
// Contract: the parts know each other only through the interfaces that they declare. What they do
// is in their own packages.
package daemon

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/anchors"
	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/health"
	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/overview"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/reload"
	"hsm-signer/cmd/hsm-signer/internal/service"
	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// A Daemon serves the requests of one CA's signers. A [Group] runs it.
type Daemon struct {
	service    *service.Service
	warnings   []string // about the policy
	metrics    *metrics.Metrics
	lost       *loss
	signing    *signing   // nil in a shadow
	shadow     *shadowLog // nil in a process that signs
	controller *kube.Controller
	files      files
	bundle     *anchors.Publisher // nil without TRUST_BUNDLE_FILE, and in a shadow
	health     *health.Health
	page       *overview.Overview
	logger     hclog.Logger
}

// newDaemon puts a daemon together; [Daemon.run] runs it, and must be called. It is not in touch
// with the token, the API server or the disk. An error is one of the configuration.
func newDaemon(s *service.Service, counts *metrics.Metrics, lost *loss,
	logger hclog.Logger) (*Daemon, error) {
	warnings, err := judge.LintRules(s.CA, s.Policy)
	if err != nil {
		return nil, err
	}
	d := Daemon{service: s, warnings: warnings, metrics: counts, lost: lost, logger: logger}
	current, recent := policy.NewCurrent(s.Policy), &overview.Activity{}
	serving := s.Controller(current.Policy)
	serving.Decider, serving.Logger = current, logger.Named("kube")
	serving.Sinks = []kube.Sink{counts, recent}
	if s.Mode == kube.Shadow {
		d.shadow = newShadowLog(s.StateDir)
		d.shadow.configure(&serving, s.CA)
	} else {
		if d.signing, err = newSigning(s, counts, lost, logger); err != nil {
			return nil, err
		}
		d.signing.configure(&serving, s)
	}
	d.controller = kube.New(serving)
	d.files = d.newFiles(current)
	if d.signing != nil {
		d.bundle = d.newBundle()
		d.signing.rotator.Connect(d.controller, d.bundle)
	}
	d.health = d.newHealth()
	d.page = d.newPage(recent)
	counts.PolicyInForce(s.Policy)
	counts.WatchController(d.controller)
	counts.Registry.MustRegister(metrics.HealthCollector{Health: d.health},
		metrics.CredentialCollector{Source: s.Credential})
	return &d, nil
}

// newHealth returns the health of what is put together.
func (d *Daemon) newHealth() *health.Health {
	h := &health.Health{Controller: d.controller, Credential: d.service.Credential,
		Policy: d.files.policy}
	if d.signing != nil {
		h.Signing, h.CA = d.signing.health, d.files.ca
	}
	if d.files.next != nil {
		h.NextCA = d.files.next
	}
	if d.bundle != nil {
		h.Anchors, h.Bundle = d.files.anchors, d.bundle
	}
	return h
}

// newPage returns the status page of a process that starts now.
func (d *Daemon) newPage(recent *overview.Activity) *overview.Overview {
	page := &overview.Overview{Config: d.service.Config, Started: time.Now(), Health: d.health,
		Activity: recent, Controller: d.controller}
	if d.service.Lease != nil {
		page.Identity = d.service.Lease.Identity
	}
	if p := d.signing; p != nil {
		page.Signing = &overview.Signing{Keys: p.keys, Issuer: p.issuer, Expiry: p.expiry,
			Stuck: p.stuck, Phase: p.rotator}
	}
	return page
}

// newBundle returns what publishes the roots of the CAs, and has its metric shown; nil if none are
// published.
func (d *Daemon) newBundle() *anchors.Publisher {
	s := d.service
	if d.files.anchors == nil {
		return nil
	}
	var next issuer.Anchors
	if s.Next != nil {
		next = s.Next.Anchors
	}
	p := anchors.New(d.files.anchors, next, d.signing.rotator, s.TrustBundlePlace(), d.controller,
		d.logger.Named("ca"))
	d.metrics.Registry.MustRegister(metrics.TrustBundleCollector{Bundle: p})
	return p
}

// run serves requests until the context ends, or until it is clear that only a human can help. It
// calls tried when the token was tried.
func (d *Daemon) run(ctx context.Context, tried func()) error {
	d.announce()
	stop, err := d.start(ctx)
	defer stop()
	if err != nil {
		return err
	}
	tried()
	background := []func(context.Context) error{
		d.controller.Run, d.watchCredential, d.health.Watch,
	}
	background = append(background, d.files.watches()...)
	if d.signing != nil {
		background = append(background, d.signing.watches()...)
	}
	if d.bundle != nil {
		background = append(background, d.bundle.Run)
	}
	return poll.All(ctx, background...)
}

// watchCredential applies a changed credential until the context ends.
func (d *Daemon) watchCredential(ctx context.Context) error {
	return d.service.Credential.Watch(ctx, d.controller, d.logger.Named("credential"))
}

// announce logs what is started, and what is doubtful about the configuration.
func (d *Daemon) announce() {
	c := d.service.Config
	for _, text := range c.Warnings {
		d.logger.Warn("a file is accepted that should not be", "warning", text)
	}
	d.logger.Info("starting", "version", buildinfo.Version(), "signers", c.SignerNames, "policy",
		c.PolicyFile, "policyHash", d.service.Policy.Hash(), "approve", c.Mode)
	reload.LogWarnings(d.logger, d.warnings)
	if d.shadow != nil && c.CACertFile == "" {
		d.logger.Warn(judge.WithoutCA)
	}
}

// start starts what the controller writes to. The caller must call stop when the controller has
// ended, also after an error.
func (d *Daemon) start(ctx context.Context) (stop func(), err error) {
	if d.shadow != nil {
		return d.shadow.stop, d.shadow.makeDir()
	}
	stop = d.signing.start()
	return stop, d.lost.Note(d.signing.tryToken(ctx, d.service, d.logger))
}
