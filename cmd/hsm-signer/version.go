package main

import (
	"io"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
)

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print version, commit, Go version and FIPS mode",
		Example: "  hsm-signer version",
		Args:    cobra.NoArgs,
		RunE:    printVersion,
	}
}

func printVersion(cmd *cobra.Command, _ []string) error {
	_, err := io.WriteString(cmd.OutOrStdout(), buildinfo.Text())
	return err
}

// addVersionFlag gives the root command --version, without the short form -v, which elsewhere is
// "verbose". It does not use cobra's own flag: a template of the version would make the linker keep
// every exported method, as package text/template does.
func addVersionFlag(root *cobra.Command) {
	version := root.Flags().Bool("version", false,
		"print version, commit, Go version and FIPS mode")
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if *version {
			return printVersion(cmd, args)
		}
		return cmd.Help()
	}
}
