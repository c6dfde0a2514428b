//go:build cgo

package main

import (
	"os"
	"slices"

	"github.com/spf13/cobra"
	"k8s.io/client-go/transport"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/daemon"
	"hsm-signer/cmd/hsm-signer/internal/logging"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/service"
)

func newRunCommand() *cobra.Command {
	settings := slices.Concat(config.ServiceSettings, config.TokenSettings, config.LogSettings)
	command := &cobra.Command{
		Use:   "run",
		Short: "Serve certificate requests",
		Long: `Watches the certificate requests of SIGNER_NAME and answers them until it is stopped. With
CONFIG_FILE it does so for several CAs, each with its own key, policy and journal.

It starts only with a CA certificate that belongs to the key in the token. It waits
for a missing token or API server: meanwhile requests stay pending and /readyz says
what is missing.`,
		Example: `  hsm-signer run --signer-name example.com/calico --ca-cert-file ca.crt \
      --kubeconfig /etc/hsm-signer/kubeconfig
  APPROVE=shadow hsm-signer run      # tries a policy on production and touches nothing`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, faults := config.ReadProcess(cmd, settings)
			counts := metrics.NewProcess()
			services := service.LoadAll(p, faults, func(ca string) transport.WrapperFunc {
				return counts.Of(ca).CountCalls
			})
			if err := faults.Err(); err != nil {
				return err
			}
			logger := logging.New(p.LogLevel, p.LogFormat, cmd.ErrOrStderr())
			config.WarnUnknown(logger, os.Environ())
			d, err := daemon.New(p.Config, services, counts, logger)
			if err != nil {
				return err
			}
			return d.Run(cmd.Context())
		},
	}
	config.AddFlags(command, settings)
	return command
}
