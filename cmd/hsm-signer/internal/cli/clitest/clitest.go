// Package clitest runs commands in tests as main runs them.
package clitest

import (
	"bytes"
	"testing"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/cli"
)

// Run runs a command below a root of its own. The arguments begin with the names of the
// command and of its parents, if there are any: "policy", "test", "--help".
func Run(t *testing.T, command *cobra.Command, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	root := &cobra.Command{Use: "hsm-signer"}
	parent := root
	for _, name := range args {
		if name == command.Name() {
			break
		}
		group := &cobra.Command{Use: name}
		parent.AddCommand(group)
		parent = group
	}
	parent.AddCommand(command)
	var out, errs bytes.Buffer
	code = cli.Execute(t.Context(), root, args, &out, &errs)
	return out.String(), errs.String(), code
}
