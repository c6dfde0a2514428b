//go:build cgo

package main

import (
	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/ceremony"
	"hsm-signer/cmd/hsm-signer/internal/check"
	"hsm-signer/cmd/hsm-signer/internal/heal"
)

// tokenCommands returns the commands of the service and of its token.
func tokenCommands() []*cobra.Command {
	return []*cobra.Command{newRunCommand(), check.NewCommand(), ceremony.NewCommand(),
		heal.NewCommand()}
}
