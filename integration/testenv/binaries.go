package testenv

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// AssetsVariable names a directory with kube-apiserver, etcd and kubectl, as for the envtest
// package of controller-runtime.
const AssetsVariable = "KUBEBUILDER_ASSETS"

const (
	modulePath        = "hsm-signer/integration"
	kubernetesModule  = "k8s.io/kubernetes"
	apiserverPackage  = "k8s.io/kubernetes/cmd/kube-apiserver"
	kubectlPackage    = "k8s.io/kubernetes/cmd/kubectl"
	etcdModule        = "go.etcd.io/etcd/server/v3"
	versionPackage    = "k8s.io/component-base/version"
	lockPollInterval  = 200 * time.Millisecond
	buildEnvironment  = "GOWORK=off" // only this module's go.mod chooses the versions
	firstBuildMessage = "the first time takes about 6 minutes on two cores"
)

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
	if dir := os.Getenv(AssetsVariable); dir != "" {
		return assets(dir)
	}
	b, err := newBuild(ctx)
	if err != nil {
		return Bin{}, err
	}
	if bin := binIn(b.target); bin.missing() == nil {
		return bin, nil
	}
	stop := ticker(progress, fmt.Sprintf("building kube-apiserver and kubectl %s, and etcd %s (%s)",
		b.kubernetes, b.etcd, firstBuildMessage))
	defer stop()
	return b.once(ctx)
}

func assets(dir string) (Bin, error) {
	bin := binIn(dir)
	if err := bin.missing(); err != nil {
		return Bin{}, fmt.Errorf("%s is set to %s, which lacks a binary: %w; copy it there, or "+
			"unset the variable",
			AssetsVariable, dir, err)
	}
	return bin, nil
}

func binIn(dir string) Bin {
	return Bin{
		APIServer: filepath.Join(dir, "kube-apiserver"),
		Etcd:      filepath.Join(dir, "etcd"),
		Kubectl:   filepath.Join(dir, "kubectl"),
	}
}

// missing returns an error if a binary does not exist.
func (b Bin) missing() error {
	for _, path := range []string{b.APIServer, b.Etcd, b.Kubectl} {
		if _, err := os.Stat(path); err != nil {
			return err
		}
	}
	return nil
}

// A serverBuild is a set of versions and flags, and the directory of its binaries.
type serverBuild struct {
	module     string // directory of this module
	kubernetes string
	etcd       string
	ldflags    string
	target     string
}

func newBuild(ctx context.Context) (*serverBuild, error) {
	module, err := moduleDir(ctx)
	if err != nil {
		return nil, err
	}
	versions, err := goOutput(ctx, module, "list", "-m", "-f", "{{.Version}}", kubernetesModule,
		etcdModule)
	if err != nil {
		return nil, err
	}
	goVersion, err := goOutput(ctx, module, "env", "GOVERSION")
	if err != nil {
		return nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("no cache directory for the servers' binaries: %w; set HOME or %s",
			err, AssetsVariable)
	}
	b := &serverBuild{module: module}
	if _, err := fmt.Sscan(versions, &b.kubernetes, &b.etcd); err != nil {
		return nil, fmt.Errorf("versions of kubernetes and etcd in %s: %w",
			filepath.Join(module, "go.mod"), err)
	}
	b.ldflags = versionFlags(b.kubernetes)
	hash := sha256.Sum256([]byte(b.ldflags))
	b.target = filepath.Join(cache, "hsm-signer",
		fmt.Sprintf("kubernetes-%s-etcd-%s-%s-%x", b.kubernetes, b.etcd, goVersion, hash[:4]))
	return b, nil
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

// once builds the binaries under a lock, unless another process has built them.
func (b *serverBuild) once(ctx context.Context) (Bin, error) {
	if err := os.MkdirAll(filepath.Dir(b.target), 0o755); err != nil {
		return Bin{}, fmt.Errorf("directory for the servers' binaries: %w", err)
	}
	lock, err := waitForLock(ctx, b.target+".lock")
	if err != nil {
		return Bin{}, err
	}
	defer lock.Close()
	bin := binIn(b.target)
	if bin.missing() == nil {
		return bin, nil // another process has built them
	}
	temp, err := os.MkdirTemp(filepath.Dir(b.target), "building-")
	if err != nil {
		return Bin{}, fmt.Errorf("directory to build the servers in: %w", err)
	}
	defer os.RemoveAll(temp)
	if err := b.compile(ctx, binIn(temp)); err != nil {
		return Bin{}, err
	}
	if err := errors.Join(os.Chmod(temp, 0o755), os.RemoveAll(b.target),
		os.Rename(temp, b.target)); err != nil {
		return Bin{}, fmt.Errorf("install the servers' binaries: %w", err)
	}
	return bin, nil
}

func (b *serverBuild) compile(ctx context.Context, out Bin) error {
	packages := map[string]string{
		out.APIServer: apiserverPackage, out.Etcd: etcdModule, out.Kubectl: kubectlPackage,
	}
	for path, pkg := range packages {
		if _, err := goOutput(ctx, b.module, "build", "-o", path, "-ldflags", b.ldflags,
			pkg); err != nil {
			return err
		}
	}
	return nil
}

// moduleDir returns the directory of this module's go.mod: that of this source file, or else that
// of the module of the working directory.
func moduleDir(ctx context.Context) (string, error) {
	if _, file, _, ok := runtime.Caller(0); ok {
		dir := filepath.Dir(filepath.Dir(file))
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	dir, err := goOutput(ctx, "", "list", "-m", "-f", "{{.Dir}}", modulePath)
	if err != nil {
		return "", fmt.Errorf("cannot find the sources of module %s: %w; run in its directory, "+
			"or set %s",
			modulePath, err, AssetsVariable)
	}
	return dir, nil
}

// goOutput runs the go command, which ends with ctx, and returns its output.
func goOutput(ctx context.Context, dir string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), buildEnvironment)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	err := cmd.Run()
	if ctx.Err() != nil {
		return "", fmt.Errorf("go %s: %w", args[0], context.Cause(ctx))
	}
	if err != nil {
		return "", fmt.Errorf("go %s in %s: %w: %s",
			strings.Join(args, " "), dir, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// lockFile opens the file and locks it until every copy of the descriptor is closed, also in child
// processes. It does not wait: if another process has the lock, the error is syscall.EWOULDBLOCK.
func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return file, nil
}

func waitForLock(ctx context.Context, path string) (*os.File, error) {
	var lock *os.File
	err := wait.PollUntilContextCancel(ctx, lockPollInterval, true,
		func(context.Context) (bool, error) {
			var err error
			lock, err = lockFile(path)
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return false, nil
			}
			return err == nil, err
		})
	if err != nil {
		return nil, fmt.Errorf("wait for another process that builds the servers: %w", err)
	}
	return lock, nil
}
