// Package buildinfo knows which version and commit this binary was built from, and its FIPS mode.
package buildinfo

import (
	"cmp"
	"crypto/fips140"
	"fmt"
	"runtime"
	"runtime/debug"
)

// Set when they are built in: -ldflags "-X $PACKAGE.release=v1.2.3 -X $PACKAGE.commit=…". The
// commit is for where there is no repository, as in the build of an image.
var release, commit = "", ""

// Version returns the release, or the commit that the binary was built from.
func Version() string {
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

// fips says which of Go's FIPS 140-3 modules is built in (GOFIPS140 of the build; "latest" is the
// one of the Go release, which is not validated) and whether it is on (GODEBUG=fips140=on; by
// default when the build chose one).
func fips() string {
	mode := "off"
	if fips140.Enabled() {
		mode = "on"
	}
	return fmt.Sprintf("module %s, mode %s",
		cmp.Or(buildSetting("GOFIPS140"), fips140.Version()), mode)
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

// The metric hsm_signer_build_info of every process, which is always 1.
const (
	MetricName = "hsm_signer_build_info"
	MetricHelp = "1; the labels hold the version and revision that this process was built from, " +
		"the version of Go, and Go's FIPS 140-3 module with its mode."
)

// MetricLabels returns the labels of hsm_signer_build_info, with the names that Prometheus' own
// programs use.
func MetricLabels() map[string]string {
	return map[string]string{"version": Version(), "revision": cmp.Or(revision(), "unknown"),
		"goversion": runtime.Version(), "fips": fips()}
}

// Text is what "version" and --version print.
func Text() string {
	return fmt.Sprintf("hsm-signer %s\ncommit %s\n%s %s/%s\nFIPS 140-3: %s\n",
		Version(), cmp.Or(revision(),
			"unknown"), runtime.Version(), runtime.GOOS, runtime.GOARCH, fips())
}
