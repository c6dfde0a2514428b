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
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), buildinfo.Text())
			return err
		},
	}
}

// addVersionFlag gives the root command --version, without the short form -v, which elsewhere is
// "verbose".
func addVersionFlag(root *cobra.Command) {
	root.Version = buildinfo.Version()
	root.SetVersionTemplate(buildinfo.Text())
	root.Flags().Bool("version", false, "print version, commit, Go version and FIPS mode")
}
