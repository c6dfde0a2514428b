package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"hsm-signer/hsm"
	"hsm-signer/kube"
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
	if err := p.issuer.Ready(ctx); errors.Is(err, hsm.ErrPIN) || errors.Is(err, hsm.ErrKey) {
		return err
	}
	if c.token.AllowExtractable {
		logger.Warn("ALLOW_EXTRACTABLE_KEY is set: the CA's key need not be one that cannot leave its token; this is for trials only")
	}
	controller := kube.New(kube.Config{
		Client: p.client, SignerNames: c.signerNames, AcceptUnset: c.acceptUnset, Approve: c.approve,
		Workers: c.workers, Decider: p.policy, Issuer: p.issuer, Logger: logger.Named("kube"),
	})
	health := &health{token: p.issuer.Ready, requests: controller.Ready, logger: logger.Named("health")}
	return runAll(ctx,
		controller.Run,
		health.watch,
		func(ctx context.Context) error { return health.serve(ctx, c.listenAddress) },
	)
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

// health knows whether the process can do its work, and says so over HTTP.
type health struct {
	token    func(context.Context) error
	requests func() error
	logger   hclog.Logger

	mu      sync.Mutex
	waiting error // why the token is not ready
	known   bool
}

// healthInterval is the time between two looks at the token.
const healthInterval = 5 * time.Second

// watch looks at the token now and then, so that it is found again also when nobody
// asks for a certificate. It returns when the PIN is refused.
func (h *health) watch(ctx context.Context) error {
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for {
		err := h.token(ctx)
		h.note(err)
		if errors.Is(err, hsm.ErrPIN) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// note logs each change.
func (h *health) note(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil && (!h.known || h.waiting != nil):
		h.logger.Info("the token is ready: it signs with the CA's key")
	case err != nil && (!h.known || h.waiting == nil || h.waiting.Error() != err.Error()):
		h.logger.Error("the token is not ready; requests stay pending", "error", err)
	}
	h.waiting, h.known = err, true
}

// serve answers /livez and /readyz.
func (h *health) serve(ctx context.Context, address string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", h.readyz)
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return &exitError{exitConfig, fmt.Errorf("LISTEN_ADDRESS: %w", err)}
	}
	h.logger.Info("listening", "address", listener.Addr().String())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stopped()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("health endpoints: %w", err)
	}
	return nil
}

// readyz says part by part what is ready and why not.
func (h *health) readyz(w http.ResponseWriter, r *http.Request) {
	token, requests := h.token(r.Context()), h.requests()
	if token != nil || requests != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	for _, part := range []struct {
		name string
		err  error
	}{{"token", token}, {"requests", requests}} {
		if part.err != nil {
			fmt.Fprintf(w, "[-] %s: %v\n", part.name, part.err)
		} else {
			fmt.Fprintf(w, "[+] %s ok\n", part.name)
		}
	}
}
