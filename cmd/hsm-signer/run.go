package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

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
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := readConfig(cmd, settings)
			c.requireToken(faults)
			c.requireKey(faults)
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
	defer p.key.Close()
	logger.Info("starting", "version", version(), "signers", c.signerNames, "policy", c.policyFile,
		"policyHash", p.policy.Hash(), "ca", p.ca.Certificate().Subject.String(), "caNotAfter", p.ca.Certificate().NotAfter)
	if err := p.key.Ready(ctx); errors.Is(err, hsm.ErrPIN) || errors.Is(err, hsm.ErrKey) {
		return err
	}
	if c.token.AllowExtractable {
		warnExtractable(ctx, p.key, logger)
	}
	current := policy.NewCurrent(p.policy)
	controller := kube.New(kube.Config{
		Client: p.client, SignerNames: c.signerNames, AcceptUnset: c.acceptUnset, Approve: c.approve,
		Workers: c.workers, Decider: current, Issuer: p.issuer, Logger: logger.Named("kube"),
	})
	reload := &reloader{config: c, current: current, logger: logger.Named("policy")}
	health := newHealth(p.key.Ready, p.ca.ValidAt, controller.Ready, reload.state, logger.Named("health"))
	return runAll(ctx,
		controller.Run,
		reload.watch,
		health.watch,
		func(ctx context.Context) error { return health.serve(ctx, c.listenAddress) },
	)
}

// warnExtractable says loudly what ALLOW_EXTRACTABLE_KEY means for this key.
func warnExtractable(ctx context.Context, key *hsm.Key, logger hclog.Logger) {
	logger.Warn("ALLOW_EXTRACTABLE_KEY is set: the CA's key need not be one that cannot leave its token; this is for trials only")
	if proof, err := key.Proof(ctx); err == nil && !proof.Holds() {
		logger.Error("THE CA'S KEY CAN LEAVE ITS TOKEN, and is used all the same", "attributes", proof.String())
	}
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
