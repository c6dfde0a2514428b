// Package daemon is what "run" runs: it puts the controller, the issuer, the key and the journal of
// each CA together, serves health, metrics and the status page, and reloads the files that may
// change.
package daemon

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// A Daemon serves the requests of one CA's signers. A [Group] runs it.
type Daemon struct {
	service    *config.Service
	warnings   []string // about the policy
	metrics    *metrics.Metrics
	signing    *signing         // nil in a shadow
	caFile     *caReloader      // nil in a shadow
	nextFile   *caReloader      // nil without NEXT_CA_CERT_FILE
	bundle     *bundlePublisher // nil without TRUST_BUNDLE_FILE, and in a shadow
	shadow     *shadowLog       // nil in a process that signs
	controller *kube.Controller
	policyFile *policyReloader
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
	serving, ca := s.Controller(current.Policy), caHolder(fixedCA{s.CA})
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
		ca = d.signing.configured(s.CA)
	}
	d.controller = kube.New(serving)
	d.policyFile = newPolicyReloader(s.Config, current, ca, d.controller, counts,
		logger.Named("policy"))
	if d.signing != nil {
		d.keepCAs(current, logger.Named("ca"))
	}
	d.health = newHealth(d.controller, s.Credential, d.policyFile, d.signing, d.caFile, d.bundle)
	d.page = newStatusPage(s, d.health, recent, d.controller, d.signing)
	counts.PolicyInForce(s.Policy)
	counts.WatchController(d.controller)
	counts.Registry.MustRegister(readiness{d.health},
		metrics.CredentialCollector{Source: s.Credential})
	return &d, nil
}

// keepCAs adds what publishes the roots of the CAs and reads the CA's certificate again.
func (d *Daemon) keepCAs(current *policy.Current, logger hclog.Logger) {
	s, ca := d.service, d.signing.configured(d.service.CA)
	d.bundle = newBundle(s, ca, d.signing.rotator, d.controller, d.metrics, logger)
	if s.Next != nil {
		d.policyFile.next = s.Next.CA
		next := d.signing.configured(s.Next.CA)
		d.nextFile = newNextCAReloader(s.NextCACertFile(), next, current, d.bundle, d.controller,
			d.metrics, logger)
		d.signing.health.nextFile = d.nextFile
	}
	d.signing.rotator.Connect(d.controller, d.bundle)
	d.caFile = newCAReloader(s.CACertFile, ca, current, d.bundle, d.controller, d.metrics, logger)
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
		d.controller.Run, d.policyFile.watch, d.watchCredential, d.health.watch,
	}
	if d.signing != nil {
		background = append(append(background, d.signing.watches()...), d.caFile.watch)
		if d.nextFile != nil {
			background = append(background, d.nextFile.watch)
		}
	}
	if d.bundle != nil {
		background = append(background, d.bundle.anchors.watch, d.bundle.run)
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
	logWarnings(d.logger, d.warnings)
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
