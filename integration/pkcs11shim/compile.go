package pkcs11shim

import (
	"context"
	"crypto/sha256"
	_ "embed" // for the source
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

//go:embed module/shim.c
var source string

// flags are the flags of the compiler. The library is never unloaded, because calls may hang in it.
var flags = []string{"-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Wl,-z,nodelete"}

var libraries = []string{"-ldl", "-lpthread"}

// compile returns the path of the library, and compiles it unless the cache has it. Concurrent
// processes install identical files.
func compile(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache directory for the shim: %w; set HOME", err)
	}
	hash := sha256.Sum256([]byte(runtime.GOARCH + source +
		strings.Join(append(flags, libraries...), " ")))
	library := filepath.Join(cache, "hsm-signer", fmt.Sprintf("shim-%x.so", hash[:8]))
	if _, err := os.Stat(library); err == nil {
		return library, nil
	}
	if err := os.MkdirAll(filepath.Dir(library), 0o755); err != nil {
		return "", fmt.Errorf("directory for the shim: %w", err)
	}
	temp, err := os.MkdirTemp(filepath.Dir(library), "shim-")
	if err != nil {
		return "", fmt.Errorf("directory to compile the shim in: %w", err)
	}
	defer os.RemoveAll(temp)
	if err := compileIn(ctx, temp); err != nil {
		return "", err
	}
	return library, os.Rename(filepath.Join(temp, "shim.so"), library)
}

func compileIn(ctx context.Context, dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "shim.c"), []byte(source), 0o600); err != nil {
		return err
	}
	args := append(append(append([]string(nil), flags...), "-o", "shim.so", "shim.c"), libraries...)
	cmd := exec.CommandContext(ctx, "cc", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("no C compiler: %w; run `make setup`, or install gcc", err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}
