package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"hsm-signer/policy"
)

func newPolicyCommand() *cobra.Command {
	command := &cobra.Command{Use: "policy", Short: "Look at the rules"}
	command.AddCommand(newPolicyShowCommand(), newPolicyExplainCommand(), newPolicyTestCommand())
	return command
}

func newPolicyShowCommand() *cobra.Command {
	settings := settingsNamed("POLICY_FILE", "CLUSTER_DOMAIN", "CERTIFICATE_LIFETIME")
	command := &cobra.Command{
		Use:   "show [" + strings.Join(policy.BuiltInNames(), "|") + "]",
		Short: "Print the policy in force, or a built-in one",
		Example: `  hsm-signer policy show
  hsm-signer policy show calico > mine.yaml      # to be changed, and named as POLICY_FILE`,
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: policy.BuiltInNames(),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, faults := readConfig(cmd, settings)
			if len(args) == 1 {
				text, ok := policy.BuiltIn(args[0])
				if !ok {
					return &exitError{exitConfig, fmt.Errorf("there is no built-in policy %q; there are %s", args[0], strings.Join(policy.BuiltInNames(), ", "))}
				}
				_, err := cmd.OutOrStdout().Write(text)
				return err
			}
			text, err := c.readPolicy()
			if err == nil {
				_, err = c.parsePolicy(text)
			}
			faults.add("POLICY_FILE", err)
			if err := faults.err(); err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	addFlags(command, settings)
	return command
}
