package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/listener"
	"hsm-signer/cmd/hsm-signer/internal/status"
	"hsm-signer/cmd/hsm-signer/stuck"
	"hsm-signer/hsm"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

func newRunCommand() *cobra.Command {
	settings := slices.Concat(serviceSettings, tokenSettings, logSettings)
	command := &cobra.Command{
		Use:   "run",
		Short: "Serve certificate requests",
		Long: `Watches the certificate requests of SIGNER_NAME and answers them until it is stopped.

It starts only with a CA certificate that belongs to the key in the token. A token
or an API server that is not there is waited for: meanwhile requests stay
pending and /readyz says what is missing.`,
		Example: `  hsm-signer run --signer-name example.com/calico --ca-cert-file ca.crt --kubeconfig /etc/hsm-signer/kubeconfig
  APPROVE=shadow hsm-signer run      # tries a policy on production and touches nothing`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := readConfig(cmd, settings)
			p := c.loadParts(faults)
			if err := faults.err(); err != nil {
				return err
			}
			logger := newLogger(c, cmd.ErrOrStderr())
			warnUnknown(logger, os.Environ())
			return run(cmd.Context(), c, p, logger)
		},
	}
	addFlags(command, settings)
	return command
}

// run serves until the context ends, or until it is clear that only a human can help.
func run(ctx context.Context, c *config, p *parts, logger hclog.Logger) error {
	for _, text := range c.warnings {
		logger.Warn("a file is accepted that should not be", "warning", text)
	}
	logger.Info("starting", "version", version(), "signers", c.signerNames, "policy", c.policyFile, "policyHash", p.policy.Hash(), "approve", c.mode)
	open, err := c.listen(ctx)
	if err != nil {
		return err
	}
	defer open.close()
	current := policy.NewCurrent(p.policy)
	counts, lately := p.metrics, &activity{}
	counts.policyInForce(p.policy)
	warnings, err := lintRules(p.ca, p.policy)
	if err != nil {
		return err
	}
	logWarnings(logger, warnings)
	reload := newPolicyReloader(c, current, p.currentCA, counts, logger.Named("policy"))
	serving := kube.Config{
		Client: p.client, SignerNames: c.signerNames, AcceptUnset: c.acceptUnset, Mode: c.mode, Lease: p.lease,
		PodNamespaces: func() []string { return podNamespaces(current.Policy()) },
		Workers:       c.workers, Pace: c.pace, Decider: current, Observer: observers{counts, lately}, Logger: logger.Named("kube"),
	}
	health := newHealth(reload.state, counts.handler(), logger.Named("health"))
	page := &statusPage{config: c, health: health, activity: lately, fault: reload.refusal, started: time.Now()}
	var background []func(context.Context) error
	var ca *caReloader
	if c.mode != kube.Shadow {
		defer p.key.Close()
		p.witness.logger = logger.Named("journal")
		defer p.witness.finish()
		defer p.journal.close()
		if p.checkpoints != nil {
			defer p.checkpoints.finish()
		}
		p.journal.logger = logger.Named("journal")
		if err := startSigning(ctx, c, p, logger); err != nil {
			return err
		}
		ca = newCAReloader(c.caCertFile, p.issuer.CA, p.replaceCA(current), counts, logger.Named("ca"))
		health.watchSigning(p, ca, c.inPod)
		counts.watchSigning(p, c.token.AllowExtractable)
		serving.Issuer, serving.Recorder = kubeIssuer{p.issuer}, p.journal
		serving.DeleteFinishedAfter, serving.Answers = c.deleteFinishedAfter, answers{p.issuer, p.journal}
		serving.Fit, serving.Says, serving.Hears = health.fit, p.witness.annotations, p.witness.hears
		page.sessions = func() hsm.Sessions { return p.key.Stats().Sessions }
		page.expiry = expiry.NewWatch(c.stateDir, p.journal.state, p.client, logger.Named("expiry"))
		counts.registry.MustRegister(expiryCollector{page.expiry.Report})
		page.stuck = stuck.NewWatch(c.stateDir, p.journal.state, p.client, logger.Named("stuck"))
		counts.registry.MustRegister(stuckCollector{page.stuck.Report})
		serving.Observer = answerObserver{serving.Observer, page.stuck}
		background = append(p.watches(logger), ca.watch, page.expiry.Run, page.stuck.Run)
	} else {
		log, err := openShadowLog(c.stateDir)
		if err != nil {
			return err
		}
		defer log.Close()
		serving.Recorder, serving.Decider = log, judgement{current, p.ca}
		if c.caCertFile == "" {
			logger.Warn(withoutCA)
		}
	}
	controller := kube.New(serving)
	health.requests, health.permits, health.leads = controller.Ready, controller.Permitted, controller.Leads
	counts.watchController(controller)
	counts.registry.MustRegister(readiness{health}, paceCollector{controller.Pace})
	page.watchController(controller)
	reload.warn, reload.changed = controller.Warn, controller.LookAgain
	if ca != nil {
		ca.warn = controller.Warn
	}
	background = append(background, controller.Run, reload.watch, health.watch, health.report)
	return runAll(ctx, append(background, endpoints(c, open, health, page, logger.Named("http"))...)...)
}

// watches look after the journal.
func (p *parts) watches(logger hclog.Logger) []func(context.Context) error {
	all := []func(context.Context) error{p.journal.watch, p.witness.watch}
	if p.checkpoints != nil {
		p.checkpoints.logger = logger.Named("journal")
		all = append(all, p.checkpoints.watch)
	}
	return all
}

// endpoints serve what is listened on: an address for probes and scrapers, and one for people.
func endpoints(c *config, open listeners, health *health, page *statusPage,
	logger hclog.Logger) []func(context.Context) error {
	all := []endpoint{health.endpoint(open["LISTEN_ADDRESS"], c.healthHosts())}
	if opened := open["STATUS_ADDRESS"]; opened != nil {
		handler := listener.DefaultInFlight.Guard(status.Handler(page.page))
		all = append(all, endpoint{
			"STATUS_ADDRESS", opened, c.statusHosts(), handler, "the status page is there", func() {},
		})
	}
	var functions []func(context.Context) error
	for _, e := range all {
		functions = append(functions, func(ctx context.Context) error { return e.serve(ctx, logger) })
	}
	return functions
}

// startSigning tries the token once. What only a human can mend ends the process; a
// token that is not there is waited for.
func startSigning(ctx context.Context, c *config, p *parts, logger hclog.Logger) error {
	ca := p.ca.Certificate()
	logger.Info("signing", "ca", ca.Subject.String(), "caNotAfter", ca.NotAfter, "token", c.token.Token.String(), "key", c.token.Key.String())
	err := p.key.Look(ctx)
	if errors.Is(err, hsm.ErrPIN) && !c.inPod || errors.Is(err, hsm.ErrKey) {
		return err
	}
	if c.token.AllowExtractable {
		logger.Warn("ALLOW_EXTRACTABLE_KEY is set: the CA's key need not be one that cannot leave its token; this is for trials only")
	}
	return nil
}

// runAll runs the functions together. When one returns, the context of the others
// ends. It answers the first error.
func runAll(ctx context.Context, functions ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	for _, f := range functions {
		group.Go(func() { cancel(f(ctx)) })
	}
	group.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}
