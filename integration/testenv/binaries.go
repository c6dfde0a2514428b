package testenv

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// AssetsVariable names a directory with kube-apiserver, etcd and kubectl, as for the envtest
// package of controller-runtime.
const AssetsVariable = "KUBEBUILDER_ASSETS"

const (
	modulePath       = "hsm-signer/integration"
	kubernetesModule = "k8s.io/kubernetes"
	etcdModule       = "go.etcd.io/etcd/server/v3"
	versionPackage   = "k8s.io/component-base/version"
)

// servers are the binaries, with their packages.
var servers = map[string]string{
	"kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
	"etcd":           etcdModule,
	"kubectl":        "k8s.io/kubernetes/cmd/kubectl",
}

// Bin has the paths of the servers' binaries, and of kubectl for the manuals.
type Bin struct {
	APIServer string
	Etcd      string
	Kubectl   string
}

// Binaries returns the paths of kube-apiserver, etcd and kubectl: in the directory of
// KUBEBUILDER_ASSETS, or in the user's cache. If the cache lacks them Binaries builds the versions
// in this module's go.mod; of several processes one builds and the others wait. progress, if not
// nil, receives a line for each slow step.
func Binaries(ctx context.Context, progress io.Writer) (Bin, error) {
	names := slices.Collect(maps.Keys(servers))
	dir := os.Getenv(AssetsVariable)
	if dir == "" {
		var err error
		if dir, err = buildServers(ctx, names, progress); err != nil {
			return Bin{}, err
		}
	} else if err := missing(dir, names); err != nil {
		return Bin{}, fmt.Errorf("%s is set to %s, which lacks a binary: %w; copy it there, or "+
			"unset the variable", AssetsVariable, dir, err)
	}
	return Bin{
		APIServer: filepath.Join(dir, "kube-apiserver"),
		Etcd:      filepath.Join(dir, "etcd"),
		Kubectl:   filepath.Join(dir, "kubectl"),
	}, nil
}

// buildServers returns the directory of the binaries in the user's cache.
func buildServers(ctx context.Context, names []string, progress io.Writer) (string, error) {
	module, err := moduleDir(ctx)
	if err != nil {
		return "", err
	}
	versions, err := goOutput(ctx, module, nil, "list", "-m", "-f", "{{.Version}}",
		kubernetesModule, etcdModule)
	if err != nil {
		return "", err
	}
	goVersion, err := goOutput(ctx, module, nil, "env", "GOVERSION")
	if err != nil {
		return "", err
	}
	kubernetes, etcd, _ := strings.Cut(versions, "\n")
	ldflags := versionFlags(kubernetes)
	hash := sha256.Sum256([]byte(ldflags))
	what := fmt.Sprintf("building kube-apiserver and kubectl %s, and etcd %s (the first time "+
		"takes about 6 minutes on two cores)", kubernetes, etcd)
	return Cached(ctx, fmt.Sprintf("kubernetes-%s-etcd-%s-%s-%x", kubernetes, etcd, goVersion,
		hash[:4]), names, progress, what, func(dir string) error {
		for name, pkg := range servers {
			if _, err := goOutput(ctx, module, nil, "build", "-o", filepath.Join(dir, name),
				"-ldflags", ldflags, pkg); err != nil {
				return err
			}
		}
		return nil
	})
}

// versionFlags returns the linker flags that set a server's version. A Kubernetes server without
// them has version v0.0.0 and disables every newer feature.
func versionFlags(version string) string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return fmt.Sprintf("-s -w -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X "+
		"%[1]s.gitMinor=%[4]s",
		versionPackage, version, major, minor)
}

// moduleDir returns the directory of this module's go.mod: that of this source file, or else that
// of the module of the working directory.
func moduleDir(ctx context.Context) (string, error) {
	dir := filepath.Join(root(), "integration")
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
		return dir, nil
	}
	dir, err := goOutput(ctx, "", nil, "list", "-m", "-f", "{{.Dir}}", modulePath)
	if err != nil {
		return "", fmt.Errorf("cannot find the sources of module %s: %w; run in its directory, "+
			"or set %s",
			modulePath, err, AssetsVariable)
	}
	return dir, nil
}
