package testenv

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
)

// Shell runs a script in a directory with hsm-signer on the PATH and the environment for this CA.
// Variables in env have precedence. The script ends at the first command that fails.
func (e *Env) Shell(ctx context.Context, ca CA, env []string, dir, script string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patienceWith([]string{"ca"}))
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-euc", script)
	cmd.Dir = dir
	path := filepath.Dir(e.binary) + string(os.PathListSeparator) + os.Getenv("PATH")
	cmd.Env = e.environment(ca, append([]string{"PATH=" + path}, env...))
	return cmd.CombinedOutput()
}
