package integration_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"hsm-signer/integration/must"
)

const unit = "hsm-signer.service"

// systemd accepts the unit on a machine with systemd's own units and hsm-signer.
func TestUnitIsValid(t *testing.T) {
	root := t.TempDir()
	units := filepath.Join(root, "etc/systemd/system")
	for _, dir := range []string{units, filepath.Join(root, "usr/local/bin")} {
		must.OK(t, os.MkdirAll(dir, 0o755))
	}
	if err := os.CopyFS(filepath.Join(root, "usr/lib/systemd/system"),
		os.DirFS("/usr/lib/systemd/system")); err != nil {
		t.Fatalf("systemd's own units (make setup installs systemd): %v", err)
	}
	must.OK(t,
		os.WriteFile(filepath.Join(root, "usr/local/bin/hsm-signer"), []byte("#!/bin/sh\n"), 0o755))
	must.OK(t, os.CopyFS(units, os.DirFS(filepath.Join(productRoot, "deploy/systemd"))))
	// What it does not understand it only warns of.
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--root="+root,
		unit).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v: %s", err, out)
	}
}

// mostExposure is the limit for systemd's exposure level of the unit, out of 10. It needs the
// network, and a socket to its supervisor.
const mostExposure = 1.2

func TestUnitIsSandboxed(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true",
		"--no-pager", filepath.Join(productRoot, "deploy/systemd", unit)).CombinedOutput()
	if err != nil {
		t.Fatalf("systemd-analyze security: %v: %s", err, out)
	}
	overall := regexp.MustCompile(`Overall exposure level for hsm-signer.service: ([0-9.]+)`).
		FindSubmatch(out)
	if overall == nil {
		t.Fatalf("systemd-analyze security says no level: %s", out)
	}
	t.Logf("%s", overall[0])
	if exposure, err := strconv.ParseFloat(string(overall[1]), 64); err != nil ||
		exposure > mostExposure {
		t.Errorf("the exposure is %s, %v; it was %.1f:\n%s", overall[1], err, mostExposure, out)
	}
}
