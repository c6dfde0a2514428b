package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The version of Helm that installs the chart in tests. It is in no go.mod, so that it changes
// nothing in the build of the API server.
const (
	helmPackage = "helm.sh/helm/v4/cmd/helm"
	helmVersion = "v4.3.1"
)

// A Helm runs Helm as the admin of a cluster. Its cache and configuration are in Dir.
type Helm struct {
	Kubeconfig string // empty: none
	Dir        string
	binary     string
}

// NewHelm returns a Helm of the pinned version. If the user's cache lacks it NewHelm builds it,
// which takes minutes; of several processes one builds and the others wait. dir must exist.
// progress, if not nil, receives a line for each slow step.
func NewHelm(ctx context.Context, kubeconfig, dir string, progress io.Writer) (*Helm, error) {
	goVersion, err := goOutput(ctx, "", "env", "GOVERSION")
	if err != nil {
		return nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("no cache directory for Helm: %w; set HOME", err)
	}
	target := filepath.Join(cache, "hsm-signer", "helm-"+helmVersion+"-"+goVersion)
	h := &Helm{Kubeconfig: kubeconfig, Dir: dir, binary: filepath.Join(target, "helm")}
	if _, err := os.Stat(h.binary); err == nil {
		return h, nil
	}
	stop := ticker(progress, "building Helm "+helmVersion)
	defer stop()
	return h, buildHelm(ctx, target)
}

// buildHelm builds Helm into the directory under a lock, unless another process has built it.
func buildHelm(ctx context.Context, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return fmt.Errorf("directory for Helm: %w", err)
	}
	lock, err := waitForLock(ctx, target+".lock")
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := os.Stat(filepath.Join(target, "helm")); err == nil {
		return nil // another process has built it
	}
	temp, err := os.MkdirTemp(filepath.Dir(target), "building-")
	if err != nil {
		return fmt.Errorf("directory to build Helm in: %w", err)
	}
	defer os.RemoveAll(temp)
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "install", helmPackage+"@"+helmVersion)
	cmd.Dir, cmd.Stderr = temp, &stderr
	cmd.Env = append(os.Environ(), buildEnvironment, "GOBIN="+temp, "CGO_ENABLED=0")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go install %s@%s: %w: %s", helmPackage, helmVersion, err,
			bytes.TrimSpace(stderr.Bytes()))
	}
	return errors.Join(os.Chmod(temp, 0o755), os.RemoveAll(target), os.Rename(temp, target))
}

// Run runs Helm with the arguments and returns what it prints. The error holds its messages.
func (h *Helm) Run(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, h.binary, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+h.Kubeconfig, "HELM_CACHE_HOME="+h.Dir,
		"HELM_CONFIG_HOME="+h.Dir, "HELM_DATA_HOME="+h.Dir)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("helm %s: %w: %s%s", strings.Join(args, " "), err,
			stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}
