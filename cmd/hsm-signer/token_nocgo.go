//go:build !cgo

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/exit"
)

// tokenCommands returns a stand-in for each command of the service and of its token, which says
// that this build lacks it: PKCS#11 modules are C libraries, and this build has no cgo.
func tokenCommands() []*cobra.Command {
	var commands []*cobra.Command
	for _, name := range []string{"run", "check", "ca", "heal"} {
		commands = append(commands, &cobra.Command{
			Use: name, Hidden: true, DisableFlagParsing: true, Args: cobra.ArbitraryArgs,
			RunE: func(*cobra.Command, []string) error {
				return exit.With(exit.Config, fmt.Errorf("this build has no %q, only policy, "+
					"audit and version: it was built without cgo, which PKCS#11 needs; use "+
					"hsm-signer for Linux from the same release", name))
			},
		})
	}
	return commands
}
