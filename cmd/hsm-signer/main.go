// Command hsm-signer signs Kubernetes certificate requests with a CA key that never leaves a
// PKCS#11 token.
//
// This package holds the commands; the packages below internal/ hold what they do.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/audit"
	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/cli"
	"hsm-signer/cmd/hsm-signer/internal/credential"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/man"
	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/cmd/hsm-signer/internal/renew"
)

func main() {
	if credential.IsPluginRun(os.Args) {
		os.Exit(credential.RunPlugin(context.Background(), os.Args, os.Stdout, os.Stderr))
	}
	if err := errors.Join(pin.Hide(), pin.Harden()); err != nil {
		fmt.Fprintln(os.Stderr, "hsm-signer: keep the PIN from being seen:", err)
		os.Exit(exit.Fault)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(cli.Execute(ctx, newRootCommand(), os.Args[1:], os.Stdout, os.Stderr))
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "hsm-signer",
		Short: "Signs Kubernetes certificate requests with a key that never leaves an HSM",
		Long: strings.TrimSpace(`
hsm-signer watches the CertificateSigningRequests of a signer name, checks that the
requester may have the names that it asks for, has a PKCS#11 token sign, and
publishes the certificate. It is configured by environment variables; each but
the PIN is also a flag (SIGNER_NAME is --signer-name), and the flag wins.

Exit codes: 0 done; 1 fault; 2 refused, or a check failed; 3 PIN refused or
locked: do not start again before it is corrected; 4 configuration.`),
	}
	root.AddCommand(tokenCommands()...)
	root.AddCommand(newPolicyCommand(), audit.NewCommand(), renew.NewCommand(), newVersionCommand(),
		man.NewCommand(root, buildinfo.Version()))
	addVersionFlag(root)
	return root
}
