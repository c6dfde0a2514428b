// Command hsm-signer signs Kubernetes certificate requests with a CA key that
// never leaves a PKCS#11 token.
//
// This package wires the rooms together; it holds the configuration, the
// commands and the health endpoints, and decides nothing.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/policy"
)

// Exit codes.
const (
	exitFault   = 1 // something failed
	exitRefused = 2 // refused, or a check failed
	exitPIN     = 3 // the PIN was refused or is locked: a supervisor must not restart
	exitConfig  = 4 // the configuration is wrong
)

// exitError is an error that knows its exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func main() {
	if err := errors.Join(hidePIN(), harden()); err != nil {
		fmt.Fprintln(os.Stderr, "hsm-signer: keep the PIN from being seen:", err)
		os.Exit(exitFault)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// execute runs one command and returns its exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCommand(stdout)
	root.SetArgs(args)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(stderr, "hsm-signer: "+harmless(text))
	}
	return exitCode(err)
}

// harmless escapes whatever could command a terminal: an error may hold what a file says that is not to be believed.
func harmless(text string) string {
	var b strings.Builder
	for _, r := range text {
		if r == '\n' || strconv.IsGraphic(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRuneToASCII(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// harmlessLine is harmless, and stays on its line.
func harmlessLine(text string) string { return strings.ReplaceAll(harmless(text), "\n", `\n`) }

func exitCode(err error) int {
	var e *exitError
	switch {
	case errors.As(err, &e):
		return e.code
	case errors.Is(err, hsm.ErrPIN):
		return exitPIN
	case errors.Is(err, hsm.ErrKey):
		return exitConfig
	}
	return exitFault
}

func newRootCommand(stdout io.Writer) *cobra.Command {
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
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(usageError)
	root.AddCommand(newRunCommand(), newCheckCommand(), newCACommand(), newPolicyCommand(), newAuditCommand(), newHealCommand(), newVersionCommand())
	addVersionFlag(root)
	root.SetOut(stdout)
	root.InitDefaultCompletionCmd() // now, so that its arguments are checked as well; it keeps where to write
	requireKnown(root)
	completeValues(root)
	return root
}

// completeValues has the shell offer the values of flags that have few.
func completeValues(command *cobra.Command) {
	for flag, values := range map[string][]string{
		"output": {"text", "json"}, "key-type": hsm.KeyTypes(), "policy-file": policy.BuiltInNames(), "signature-algorithm": issuer.AlgorithmNames(),
		"approve": {"true", "false", "shadow"}, "unset-signer-name": {"ignore", "accept"}, "log-format": {"text", "json"}, "expiring": {"soon", "30d"}, "log-level": {"trace", "debug", "info", "warn", "error"},
	} {
		if command.Flags().Lookup(flag) != nil {
			// It fails when the flag is not there, or has values already: both are seen here.
			_ = command.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveDefault))
		}
	}
	for _, sub := range command.Commands() {
		completeValues(sub)
	}
}

// requireKnown makes unknown commands and wrong arguments configuration faults: cobra would
// print the help and end with 0, or end with 1.
func requireKnown(command *cobra.Command) {
	check := command.Args
	if command.HasSubCommands() {
		command.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		check = func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("there is no command %q", args[0])
			}
			return nil
		}
	}
	command.Args = func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError(c, err)
		}
		return nil
	}
	for _, sub := range command.Commands() {
		requireKnown(sub)
	}
}

func usageError(c *cobra.Command, err error) error {
	return &exitError{exitConfig, fmt.Errorf("%w (see: %s --help)", err, c.CommandPath())}
}
