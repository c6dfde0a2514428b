package main

import (
	"strings"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/cli"
	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/explain"
	"hsm-signer/cmd/hsm-signer/internal/policytest"
	"hsm-signer/cmd/hsm-signer/internal/validate"
	"hsm-signer/policy"
)

func newPolicyCommand() *cobra.Command {
	command := &cobra.Command{Use: "policy", Short: "Show, validate, test and explain policies"}
	command.AddCommand(newPolicyShowCommand(), explain.NewCommand(), policytest.NewCommand(),
		validate.NewCommand())
	return command
}

func newPolicyShowCommand() *cobra.Command {
	settings := config.Named("POLICY_FILE", "CLUSTER_DOMAIN", "TRUST_DOMAIN",
		"CERTIFICATE_LIFETIME")
	command := &cobra.Command{
		Use:   "show [" + strings.Join(policy.BuiltInNames(), "|") + "|FILE]",
		Short: "Print the policy in force, a built-in one, or one in a file",
		Long: `Prints the policy that POLICY_FILE names, a built-in one, or the one in a file. A file with
mistakes is not printed: the mistakes are, and the exit code is 4.`,
		Example: `  hsm-signer policy show
  hsm-signer policy show calico > mine.yaml      # edit it, then name it in POLICY_FILE
  hsm-signer policy show mine.yaml`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cli.CompletePolicies,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, faults := config.Read(cmd, settings)
			source := "POLICY_FILE"
			if len(args) == 1 { // nothing is signed by it, so anybody may own it
				source, c.PolicyFile, c.AnyPolicy = "FILE", args[0], true
			}
			text, err := c.ReadPolicy()
			// a built-in one may need a setting that is not known yet
			if _, builtIn := policy.BuiltIn(c.PolicyFile); err == nil && !builtIn {
				_, err = c.ParsePolicy(text, nil)
			}
			faults.Add(source, err)
			if err := faults.Err(); err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	return command
}
