package credential

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// pluginArgument is the first argument of a process that runs an exec plugin for hsm-signer.
const pluginArgument = "run-credential-plugin"

// inherited are the variables that a plugin gets from hsm-signer's environment: what a program
// needs to find programs, files and the network. The PIN and everything about the token are not
// among them.
var inherited = []string{"PATH", "HOME", "USER", "TMPDIR", "LANG", "LC_ALL", "TZ",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
	"SSL_CERT_FILE", "SSL_CERT_DIR", "KUBERNETES_EXEC_INFO"}

// pluginTimeout is how long a plugin may take. client-go has no limit, and no request is sent
// meanwhile.
const pluginTimeout = time.Minute

// guardPlugin has client-go, which passes on the whole environment, run the plugin through
// hsm-signer, which cleans it. Arguments name the variables that the kubeconfig sets, without their
// values: other users can read arguments.
func guardPlugin(plugin *clientcmdapi.ExecConfig) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the program of hsm-signer: %w", err)
	}
	var names []string
	for _, variable := range plugin.Env {
		names = append(names, variable.Name)
	}
	plugin.Args = append([]string{pluginArgument, strings.Join(names, ","), plugin.Command},
		plugin.Args...)
	plugin.Command = self
	plugin.StdinUnavailable = true
	plugin.StdinUnavailableMessage = "hsm-signer asks nobody: use a plugin that needs no input"
	return nil
}

// IsPluginRun reports whether the arguments of this process are those that [guardPlugin] gave it.
func IsPluginRun(args []string) bool { return len(args) > 3 && args[1] == pluginArgument }

// RunPlugin runs the plugin that the arguments name, with a clean environment, and returns the exit
// code of this process.
func RunPlugin(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	names, program := strings.Split(args[2], ","), args[3]
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args[4:]...)
	cmd.Env = cleaned(os.Environ(), names)
	cmd.Stdout, cmd.Stderr = &out, stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("it did not end within %s", pluginTimeout)
	}
	if err == nil {
		_, err = stdout.Write(out.Bytes())
	}
	if err != nil {
		fmt.Fprintf(stderr, "the credential plugin %s failed: %v\n", program, err)
		var exited *exec.ExitError
		if errors.As(err, &exited) && exited.ExitCode() > 0 {
			return exited.ExitCode()
		}
		return 1
	}
	return 0
}

// cleaned returns the entries of the environment that a plugin gets: those of [inherited], and
// those with these names.
func cleaned(environ, names []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return !slices.Contains(inherited, name) && !slices.Contains(names, name)
	})
}
