package pkcs11shim

import (
	"context"
	"crypto/sha256"
	_ "embed" // for the source
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"hsm-signer/integration/testenv"
)

//go:embed module/shim.c
var source string

// arguments are those of the compiler, which reads the source from its standard input. The library
// is never unloaded, because calls may hang in it.
const arguments = "-shared -fPIC -O2 -Wall -Wextra -Wl,-z,nodelete -o shim.so -x c - -ldl -lpthread"

// compile returns the path of the library, and compiles it unless the cache has it.
func compile(ctx context.Context) (string, error) {
	hash := sha256.Sum256([]byte(runtime.GOARCH + source + arguments))
	dir, err := testenv.Cached(ctx, fmt.Sprintf("shim-%x", hash[:8]), []string{"shim.so"}, nil,
		"compiling the shim", func(dir string) error {
			cmd := exec.CommandContext(ctx, "cc", strings.Fields(arguments)...)
			cmd.Dir, cmd.Stdin = dir, strings.NewReader(source)
			out, err := cmd.CombinedOutput()
			if errors.Is(err, exec.ErrNotFound) {
				return fmt.Errorf("no C compiler: %w; run `make setup`, or install gcc", err)
			}
			if err != nil {
				return fmt.Errorf("%s: %w: %s", cmd, err, out)
			}
			return nil
		})
	return filepath.Join(dir, "shim.so"), err
}
