package main

import (
	"crypto/fips140"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// release is set when a release is built (-ldflags "-X main.release=v1.2.3").
var release = ""

// version returns the release, or the commit that the binary was built from.
func version() string {
	if release != "" {
		return release
	}
	if commit := buildSetting("vcs.revision"); commit != "" {
		return "commit-" + commit[:min(12, len(commit))]
	}
	return "unreleased"
}

func buildSetting(key string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version, commit, Go version and FIPS mode",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			commit := buildSetting("vcs.revision")
			if commit == "" {
				commit = "unknown"
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "hsm-signer %s\ncommit %s\n%s %s/%s\nFIPS 140-3 mode: %t\n",
				version(), commit, runtime.Version(), runtime.GOOS, runtime.GOARCH, fips140.Enabled())
			return err
		},
	}
}
