// Package cli runs the commands: it completes the values of flags, makes every wrong argument a
// configuration error, and prints errors so that they cannot control a terminal.
package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/policy"
)

// Execute runs the command that the arguments name, and returns the exit code. root has all
// commands, and is used once.
func Execute(ctx context.Context, root *cobra.Command, args []string, stdout,
	stderr io.Writer) int {
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	Prepare(root)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(stderr, "hsm-signer: "+terminal.Escape(text))
	}
	return exit.Code(err)
}

// Prepare completes a root command that has all others.
func Prepare(root *cobra.Command) {
	root.SilenceUsage, root.SilenceErrors = true, true
	root.SetFlagErrorFunc(usageError)
	// now, so that its arguments are checked too; it keeps the output that is set
	root.InitDefaultCompletionCmd()
	requireKnown(root)
	completeValues(root)
}

// completeValues has the shell offer the values of flags that have few.
func completeValues(command *cobra.Command) {
	for flag, values := range map[string][]string{
		"approve":             {"true", "false", "shadow"},
		"expiring":            {"soon", "30d"},
		"key-type":            hsm.KeyTypes(),
		"log-format":          {"text", "json"},
		"log-level":           {"trace", "debug", "info", "warn", "error"},
		"output":              {"text", "json"},
		"policy-file":         policy.BuiltInNames(),
		"signature-algorithm": issuer.AlgorithmNames(),
		"unset-signer-name":   {"ignore", "accept"},
	} {
		if command.Flags().Lookup(flag) != nil {
			// It fails if the flag has values already, as that of "policy test" has.
			_ = command.RegisterFlagCompletionFunc(flag,
				cobra.FixedCompletions(values, cobra.ShellCompDirectiveDefault))
		}
	}
	for _, sub := range command.Commands() {
		completeValues(sub)
	}
}

// requireKnown makes unknown commands and wrong arguments configuration errors. Without it cobra
// prints the help and ends with 0, or ends with 1.
func requireKnown(command *cobra.Command) {
	check := command.Args
	if command.HasSubCommands() {
		if command.RunE == nil {
			command.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
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
	return exit.With(exit.Config, fmt.Errorf("%w (see: %s --help)", err, c.CommandPath()))
}

// CompletePolicies offers files, and the built-in policies.
func CompletePolicies(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return policy.BuiltInNames(), cobra.ShellCompDirectiveDefault
}
