// Package daemon is what "run" runs: it puts the controller, the issuer, the key and the journal
// together, serves health, metrics and the status page, and reloads the files that may change.
package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/cmd/hsm-signer/internal/listener"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/serve"
	"hsm-signer/cmd/hsm-signer/internal/status"
	"hsm-signer/cmd/hsm-signer/internal/stuck"
	"hsm-signer/hsm"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// Run serves until the context ends, or until it is clear that only a human can help.
func Run(ctx context.Context, s *config.Service, counts *metrics.Metrics,
	logger hclog.Logger) error {
	c := s.Config
	for _, text := range c.Warnings {
		logger.Warn("a file is accepted that should not be", "warning", text)
	}
	logger.Info("starting", "version", buildinfo.Version(), "signers", c.SignerNames, "policy",
		c.PolicyFile, "policyHash", s.Policy.Hash(), "approve", c.Mode)
	open, err := serve.Listen(ctx, c)
	if err != nil {
		return err
	}
	defer open.Close()
	var p *parts
	if c.Mode != kube.Shadow {
		if p, err = newParts(s, counts, logger.Named("journal")); err != nil {
			return err
		}
	}
	current, lately := policy.NewCurrent(s.Policy), &activity{}
	counts.PolicyInForce(s.Policy)
	warnings, err := config.LintRules(s.CA, s.Policy)
	if err != nil {
		return err
	}
	logWarnings(logger, warnings)
	reload := newPolicyReloader(c, current, currentCA(s, p), counts, logger.Named("policy"))
	serving := kube.Config{
		Client: s.Client, SignerNames: c.SignerNames, AcceptUnset: c.AcceptUnset, Mode: c.Mode, Lease: s.Lease,
		PodNamespaces: func() []string { return config.PodNamespaces(current.Policy()) },
		Workers:       c.Workers, Pace: c.Pace, Decider: current, Sinks: []kube.Sink{counts,
			lately}, Logger: logger.Named("kube"),
	}
	health := newHealth(reload.state, counts.Handler(), logger.Named("health"))
	page := &statusPage{config: c, health: health, activity: lately, fault: reload.refusal,
		started: time.Now()}
	var background []func(context.Context) error
	var ca *caReloader
	if c.Mode != kube.Shadow {
		defer p.key.Close()
		defer p.witness.Finish()
		defer poll.Start(p.journal.Run)() // until everything that writes to it has ended
		if p.checkpoints != nil {
			defer p.checkpoints.Finish()
		}
		if err := startSigning(ctx, s, p, logger); err != nil {
			return err
		}
		ca = newCAReloader(c.CACertFile, p.issuer.CA, p.replaceCA(current), counts,
			logger.Named("ca"))
		health.watchSigning(p, ca, s.Lease != nil, c.InPod)
		counts.WatchSigning(p.key, p.issuer.CA, p.journal, p.witness, c.Token.AllowExtractable)
		serving.Issuer = kubeIssuer{p.issuer}
		serving.DeleteFinishedAfter, serving.Answers = c.DeleteFinishedAfter, answers{p.issuer,
			c.StateDir}
		serving.Fit, serving.Says, serving.Hears = health.fit, p.witness.Annotations, p.witness.Hears
		page.sessions = func() hsm.Sessions { return p.key.Stats().Sessions }
		page.expiry = expiry.NewWatch(c.StateDir, p.journal.State, s.Client, logger.Named("expiry"))
		counts.Registry.MustRegister(metrics.ExpiryCollector{Report: page.expiry.Report})
		page.stuck = stuck.NewWatch(c.StateDir, p.journal.State, s.Client, logger.Named("stuck"))
		counts.Registry.MustRegister(metrics.StuckCollector{Report: page.stuck.Report})
		serving.Sinks = append(serving.Sinks, refusalSink{p.journal}, answeredSink{page.stuck})
		background = append(p.watches(), ca.watch, page.expiry.Run, page.stuck.Run)
	} else {
		log, err := openShadowLog(c.StateDir)
		if err != nil {
			return err
		}
		defer log.Close()
		serving.Sinks, serving.Decider = append(serving.Sinks, log), judge.Judge{Decider: current,
			CA: s.CA}
		if c.CACertFile == "" {
			logger.Warn(judge.WithoutCA)
		}
	}
	controller := kube.New(serving)
	health.requests, health.permits, health.leads = controller.Ready, controller.Permitted, controller.Leads
	counts.WatchController(controller)
	counts.Registry.MustRegister(readiness{health}, metrics.PaceCollector{State: controller.Pace})
	page.watchController(controller)
	reload.warn, reload.changed = controller.Warn, controller.LookAgain
	if ca != nil {
		ca.warn = controller.Warn
	}
	background = append(background, controller.Run, reload.watch, health.watch, health.report)
	return poll.All(ctx,
		append(background, endpoints(c, open, health, page, logger.Named("http"))...)...)
}

// watches are what keeps the head of the journal.
func (p *parts) watches() []func(context.Context) error {
	all := []func(context.Context) error{p.witness.Watch}
	if p.checkpoints != nil {
		all = append(all, p.checkpoints.Watch)
	}
	return all
}

// endpoints serve what is listened on: an address for probes and scrapers, and one for people.
func endpoints(c *config.Config, open serve.Listeners, health *health, page *statusPage,
	logger hclog.Logger) []func(context.Context) error {
	all := []serve.Endpoint{{
		Variable: "LISTEN_ADDRESS", Listener: open["LISTEN_ADDRESS"], Hosts: serve.HealthHosts(c),
		Handler: health.handler(), Said: "listening",
	}}
	if opened := open["STATUS_ADDRESS"]; opened != nil {
		all = append(all, serve.Endpoint{
			Variable: "STATUS_ADDRESS", Listener: opened, Hosts: serve.StatusHosts(c),
			Handler: listener.DefaultInFlight.Guard(status.Handler(page.page)), Said: "the status page is there",
		})
	}
	var functions []func(context.Context) error
	for _, e := range all {
		functions = append(functions,
			func(ctx context.Context) error { return e.Serve(ctx, logger) })
	}
	return functions
}

// startSigning tries the token once. It returns an error for what only a human can fix, and nil for
// a missing token, which may still appear.
func startSigning(ctx context.Context, c *config.Service, p *parts, logger hclog.Logger) error {
	ca := c.CA.Certificate()
	logger.Info("signing", "ca", ca.Subject.String(), "caNotAfter", ca.NotAfter, "token",
		c.Token.Token.String(), "key", c.Token.Key.String())
	err := p.key.Healthy(ctx)
	if errors.Is(err, hsm.ErrPIN) && !c.InPod || errors.Is(err, hsm.ErrKey) {
		return err
	}
	if c.Token.AllowExtractable {
		logger.Warn("ALLOW_EXTRACTABLE_KEY is set: the CA's key need not be one that cannot " +
			"leave its token; this is for trials only")
	}
	return nil
}
