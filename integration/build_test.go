package integration_test

import (
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hsm-signer/integration/must"
)

// sources are the files that the product is built from.
var sources = []string{"Makefile", "go.mod", "go.sum", "cmd", "docs", "hsm", "issuer",
	"kube", "policy"}

// build runs "make build" in a copy of the product's sources and returns the binary.
func build(t *testing.T, settings ...string) (binary string) {
	t.Helper()
	_ = os.Getenv("SOURCES") // see sources.sh
	dir := t.TempDir()
	for _, name := range sources {
		if out, err := exec.CommandContext(t.Context(), "cp", "-R",
			filepath.Join(productRoot, name), dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	cmd := exec.CommandContext(t.Context(), "make",
		append([]string{"build", "RELEASE=v0.0.0-test", "COMMIT=0123abc"}, settings...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make build: %v: %s", err, out)
	}
	return filepath.Join(dir, "bin", "hsm-signer")
}

func digest(t *testing.T, file string) [sha256.Size]byte {
	t.Helper()
	return sha256.Sum256(must.Get(os.ReadFile(file))(t))
}

// The same sources give the same binary: in another directory, with an empty cache, for another
// user, in another time zone.
func TestBuildIsReproducible(t *testing.T) {
	first := digest(t, build(t))
	modules := must.Get(exec.CommandContext(t.Context(), "go", "env", "GOMODCACHE").Output())(t)
	t.Setenv("GOMODCACHE", strings.TrimSpace(string(modules)))
	for _, variable := range []string{"GOCACHE", "HOME", "TMPDIR"} {
		t.Setenv(variable, t.TempDir())
	}
	t.Setenv("TZ", "Pacific/Kiritimati")
	t.Setenv("LC_ALL", "C")
	if second := digest(t, build(t)); first != second {
		t.Errorf("two builds of the same sources have the SHA-256 %x and %x", first, second)
	} else {
		t.Logf("both builds have the SHA-256 %x", first)
	}
}

// GOFIPS140 selects Go's FIPS 140-3 module, and version reports it.
func TestBuildWithTheFIPSModule(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), build(t, "GOFIPS140=v1.0.0"),
		"version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "FIPS 140-3: module v1.0.0") ||
		!strings.Contains(string(out), ", mode on") {
		t.Errorf("version says %q, %v", out, err)
	}
}
