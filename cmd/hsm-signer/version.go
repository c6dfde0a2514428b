package main

import (
	"cmp"
	"crypto/fips140"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Set when they are built in: -ldflags "-X main.release=v1.2.3 -X main.commit=…". The commit is for where
// there is no repository, as in the build of an image.
var release, commit = "", ""

// version returns the release, or the commit that the binary was built from.
func version() string {
	if release != "" {
		return release
	}
	if revision := revision(); revision != "" {
		return "commit-" + revision[:min(12, len(revision))]
	}
	return "unreleased"
}

// revision is the commit, or empty where nobody knows it.
func revision() string { return cmp.Or(commit, buildSetting("vcs.revision")) }

// fips says which of Go's FIPS 140-3 modules is built in (GOFIPS140 of the build; "latest" is the one of the Go
// release, which is not validated) and whether it is on (GODEBUG=fips140=on; by default when the build chose one).
func fips() string {
	mode := "off"
	if fips140.Enabled() {
		mode = "on"
	}
	return fmt.Sprintf("module %s, mode %s", cmp.Or(buildSetting("GOFIPS140"), fips140.Version()), mode)
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
		Use:     "version",
		Short:   "Print version, commit, Go version and FIPS mode",
		Example: "  hsm-signer version",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), versionText())
			return err
		},
	}
}

// versionText is what "version" and --version print.
func versionText() string {
	return fmt.Sprintf("hsm-signer %s\ncommit %s\n%s %s/%s\nFIPS 140-3: %s\n",
		version(), cmp.Or(revision(), "unknown"), runtime.Version(), runtime.GOOS, runtime.GOARCH, fips())
}

// addVersionFlag gives the root command --version, without the short form -v, which elsewhere is
// "verbose".
func addVersionFlag(root *cobra.Command) {
	root.Version = version()
	root.SetVersionTemplate(versionText())
	root.Flags().Bool("version", false, "print version, commit, Go version and FIPS mode")
}
