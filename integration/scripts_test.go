package integration_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hsm-signer/integration/must"
)

// script runs one of the scripts and returns its exit code and output.
func script(t *testing.T, env []string, name string, args ...string) (code int, output string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{name}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// A release is only built from base images with a digest.
func TestReleasesArePinned(t *testing.T) {
	pinned := "debian:bookworm-slim@sha256:" + strings.Repeat("0a", 32)
	for _, c := range []struct {
		release, build, runtime, unpinned string
		code                              int
		want                              string
	}{
		{"v1.2.3", pinned, pinned, "", 0, ""},
		{"v1.2.3", "golang:1.26", pinned, "", 1, "without a digest: golang:1.26\n"},
		{"v1.2.3", pinned, "debian:12", "", 1, "without a digest: debian:12\n"},
		{"v1.2.3-rc.1", "golang:1.26", "debian:12", "", 1, "golang:1.26 debian:12"},
		{"v1.2.3", "golang@sha256:0a", pinned, "", 1, "golang@sha256:0a"},
		{"v1.2.3", "golang:1.26", "debian:12", "allow", 0, "WARNING"},
		{"v1.2.3", "golang:1.26", "debian:12", "1", 1, "UNPINNED=allow"},
		{"v1.2.3-4-g0123abc", "golang:1.26", "debian:12", "", 0, ""},
		{"v1.2.3-dirty", "golang:1.26", "debian:12", "", 0, ""},
		{"", "golang:1.26", "debian:12", "", 0, ""},
	} {
		code, out := script(t, []string{"UNPINNED=" + c.unpinned}, "images/pinned.sh", c.release,
			c.build, c.runtime)
		if code != c.code || !strings.Contains(out, c.want) || c.want == "" && out != "" {
			t.Errorf("%q from %s and %s: exit code %d; %s", c.release, c.build, c.runtime,
				code, out)
		}
	}
	// make image asks first, and builds from what was asked about.
	recipe := must.Get(run("make", "-n", "image", "RELEASE=v1.2.3", "RUNTIME_IMAGE="+pinned))(t)
	ask := `pinned.sh "v1.2.3" "golang:1.26-bookworm" "` + pinned + `"`
	_, after, asked := strings.Cut(string(recipe), ask)
	if !asked || !strings.Contains(after, "--build-arg RUNTIME_IMAGE="+pinned) {
		t.Errorf("make image does not ask %s before it builds:\n%s", ask, recipe)
	}
}

// A vulnerability scan that could not run is not reported as a success.
func TestVulnerabilityScan(t *testing.T) {
	scan := filepath.Join(t.TempDir(), "govulncheck")
	for _, c := range []struct {
		output, exit, required string
		code                   int
		want                   string
	}{
		{"No vulnerabilities found.", "0", "", 0, "No vulnerabilities found."},
		{"No vulnerabilities found.", "0", "required", 0, "No vulnerabilities found."},
		{"Vulnerability #1: GO-2026-0001 https://vuln.go.dev", "3", "", 1, "GO-2026-0001"},
		{"Vulnerability #1: GO-2026-0001\nexit status 3", "1", "", 1, "GO-2026-0001"},
		{"fetching vulnerabilities: no such host", "1", "", 0, "NOT CHECKED"},
		{"fetching vulnerabilities: no such host", "1", "required", 1, "NOT CHECKED"},
		{"module lookup disabled", "1", "", 0, "NOT CHECKED"},
		{"module lookup disabled", "1", "required", 1, "NOT CHECKED"},
		{"", "0", "yes", 2, "is not \"required\""},
	} {
		text := "#!/bin/sh\ncat <<'END'\n" + c.output + "\nEND\nexit " + c.exit + "\n"
		must.OK(t, os.WriteFile(scan, []byte(text), 0o700))
		code, out := script(t, []string{"VULNCHECK=" + c.required}, "vulnerabilities.sh",
			"sh "+scan)
		if code != c.code || !strings.Contains(out, c.want) || c.want != "NOT CHECKED" &&
			strings.Contains(out, "NOT CHECKED") {
			t.Errorf("%q with exit status %s, VULNCHECK=%q: exit code %d; %s", c.output, c.exit,
				c.required, code, out)
		}
	}
}
