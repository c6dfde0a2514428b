// Package daemon is what "run" runs: it puts the controller, the issuer, the key and the journal of
// each CA together, serves health, metrics and the status page, and reloads the files that may
// change.
package daemon

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/anchors"
	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/reload"
	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// A Daemon serves the requests of one CA's signers. A [Group] runs it.
type Daemon struct {
	service    *config.Service
	warnings   []string // about the policy
	metrics    *metrics.Metrics
	signing    *signing   // nil in a shadow
	shadow     *shadowLog // nil in a process that signs
	controller *kube.Controller
	files      files
	bundle     *anchors.Publisher // nil without TRUST_BUNDLE_FILE, and in a shadow
	health     *health
	page       *statusPage
	logger     hclog.Logger
}

// newDaemon puts a daemon together; [Daemon.run] runs it, and must be called. It is not in touch
// with the token, the API server or the disk. An error is one of the configuration.
func newDaemon(s *config.Service, counts *metrics.Metrics, logger hclog.Logger) (*Daemon, error) {
	warnings, err := config.LintRules(s.CA, s.Policy)
	if err != nil {
		return nil, err
	}
	d := Daemon{service: s, warnings: warnings, metrics: counts, logger: logger}
	current, recent := policy.NewCurrent(s.Policy), &activity{}
	serving := s.Controller(current.Policy)
	serving.Decider, serving.Logger = current, logger.Named("kube")
	serving.Sinks = []kube.Sink{counts, recent}
	if s.Mode == kube.Shadow {
		d.shadow = newShadowLog(s.StateDir)
		d.shadow.configure(&serving, s.CA)
	} else {
		if d.signing, err = newSigning(s, counts, logger); err != nil {
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
	d.health = newHealth(d.controller, s.Credential, d.signing, d.files, d.bundle)
	d.page = newStatusPage(s, d.health, recent, d.controller, d.signing)
	counts.PolicyInForce(s.Policy)
	counts.WatchController(d.controller)
	counts.Registry.MustRegister(readiness{d.health},
		metrics.CredentialCollector{Source: s.Credential})
	return &d, nil
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
		d.controller.Run, d.watchCredential, d.health.watch,
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
	return stop, d.signing.lost().note(d.signing.tryToken(ctx, d.service, d.logger))
}
