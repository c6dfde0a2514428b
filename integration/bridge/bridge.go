// Package bridge is the whole thing on real parts: an API server, a token with
// a CA that the ceremony made in it, and hsm-signer itself as a process of its
// own, with no more rights than deploy/base/rbac.yaml gives it.
//
// Tests, the demonstration and the benchmarks stand on it. What New starts ends
// with Close; a Daemon ends with its context at the latest.
package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"

	"hsm-signer/integration/bed"
)

// SignerName is the signer that deploy/base/rbac.yaml allows.
const SignerName = "example.com/calico"

// serviceAccount is hsm-signer's, and its namespace's name too, as in deploy/base/rbac.yaml.
const serviceAccount = "hsm-signer"

// Options say what Bridge to make.
type Options struct {
	// Dir keeps the token, the CAs and the kubeconfig; it is the caller's to remove.
	Dir string
	// Binary is an hsm-signer that is built already, such as another Bridge's; empty: it is built.
	Binary string
	// Progress is told of what takes long; nil for nobody.
	Progress io.Writer
}

// A Bridge has all that hsm-signer needs, and runs it.
type Bridge struct {
	Cluster *bed.Cluster
	Token   *bed.SoftHSM

	dir        string
	binary     string
	kubeconfig string       // of hsm-signer's service account
	states     atomic.Int64 // directories of journals: each process has its own
	pods       atomic.Int64
	addresses  atomic.Uint32
}

// New builds hsm-signer, starts a cluster, gives hsm-signer its rights there, and makes a token.
func New(ctx context.Context, o Options) (*Bridge, error) {
	b := &Bridge{dir: o.Dir, binary: o.Binary, kubeconfig: filepath.Join(o.Dir, "kubeconfig")}
	if err := b.set(ctx, o.Progress); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func (b *Bridge) set(ctx context.Context, progress io.Writer) (err error) {
	if b.binary == "" {
		b.binary = filepath.Join(b.dir, "hsm-signer")
		if err := Build(ctx, b.binary); err != nil {
			return err
		}
	}
	if b.Token, err = bed.NewSoftHSM(ctx, filepath.Join(b.dir, "token"), "ca"); err != nil {
		return err
	}
	if b.Cluster, err = bed.Start(ctx, bed.Options{Progress: progress}); err != nil {
		return err
	}
	return b.authorize(ctx)
}

// Build builds the hsm-signer of this working tree.
func Build(ctx context.Context, binary string) error {
	return build(ctx, root(), "./cmd/hsm-signer", binary)
}

// BuildClient builds the program that a [load.Processes] runs.
func BuildClient(ctx context.Context, binary string) error {
	return build(ctx, filepath.Join(root(), "integration"), "./cmd/calicoclient", binary)
}

func build(ctx context.Context, module, program, binary string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, program)
	cmd.Dir = module
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", program, err, out)
	}
	return nil
}

// root is the product's directory, which this file is two below.
func root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// authorize applies deploy/base/rbac.yaml and writes the kubeconfig of its service account.
func (b *Bridge) authorize(ctx context.Context) error {
	manifests, err := os.ReadFile(filepath.Join(root(), "deploy", "base", "rbac.yaml"))
	if err != nil {
		return err
	}
	if err := b.Cluster.Apply(ctx, manifests); err != nil {
		return fmt.Errorf("apply deploy/base/rbac.yaml: %w", err)
	}
	if err := b.Cluster.AllowRequests(ctx); err != nil {
		return err
	}
	return b.KubeconfigVia(ctx, b.kubeconfig, b.Cluster.ConfigFor)
}

// KubeconfigVia writes a kubeconfig file with which hsm-signer, as its own service
// account, takes another way to the API server: config is that of whoever has the token.
func (b *Bridge) KubeconfigVia(ctx context.Context, path string, config func(token string) *rest.Config) error {
	return b.kubeconfigOf(ctx, serviceAccount, path, config)
}

// kubeconfigOf writes the kubeconfig file of a service account in hsm-signer's namespace.
func (b *Bridge) kubeconfigOf(ctx context.Context, account, path string, config func(token string) *rest.Config) error {
	token, err := b.Cluster.UnboundToken(ctx, serviceAccount, account)
	if err != nil {
		return err
	}
	return bed.WriteKubeconfig(path, config(token))
}

// Binary is the path of hsm-signer.
func (b *Bridge) Binary() string { return b.binary }

// Close ends the cluster.
func (b *Bridge) Close() error {
	if b.Cluster == nil {
		return nil
	}
	return b.Cluster.Stop()
}

// A CA is one whose key is in the token.
type CA struct {
	KeyLabel string
	CertFile string // PEM
}

// CreateCA has the ceremony make a CA with a key of that type, which is its label
// too. The output is what the ceremony printed.
func (b *Bridge) CreateCA(ctx context.Context, keyType string) (ca CA, output string, err error) {
	ca = CA{KeyLabel: keyType, CertFile: filepath.Join(b.dir, keyType+".crt")}
	stdout, stderr, code := b.Command(ctx, ca, nil, "ca", "create", "--key-type", keyType, "--subject", "CN=Calico CA,O=Example", "--out", ca.CertFile)
	if code != 0 {
		return ca, "", fmt.Errorf("hsm-signer ca create --key-type %s: exit code %d: %s", keyType, code, stderr)
	}
	return ca, stdout, nil
}

// Command runs hsm-signer once and returns what it printed and its exit code.
// The environment is added to the one that is right. A command that does not end
// is killed, which is the exit code -1; the ceremony may take minutes.
func (b *Bridge) Command(ctx context.Context, ca CA, env []string, args ...string) (stdout, stderr string, code int) {
	ctx, cancel := context.WithTimeout(ctx, patienceWith(args))
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, b.binary, args...)
	cmd.Env = b.environment(ca, env)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// patienceWith is how long a command may take. Only making keys is slow: SoftHSM
// looks for the primes of an RSA-8192 key for half a minute, and with bad luck for
// several times that.
func patienceWith(args []string) time.Duration {
	if len(args) > 0 && args[0] == "ca" {
		return 4 * time.Minute
	}
	return patience
}

// Env is the environment that is right for this CA, apart from the PIN.
func (b *Bridge) Env(ca CA) []string {
	return []string{
		b.Token.Env(),
		"PKCS11_MODULE=" + b.Token.Module,
		"PKCS11_TOKEN_LABEL=" + b.Token.Label,
		"CA_KEY_LABEL=" + ca.KeyLabel,
		"CA_CERT_FILE=" + ca.CertFile,
		"SIGNER_NAME=" + SignerName,
		"KUBECONFIG=" + b.kubeconfig,
	}
}

// environment is the whole environment of a process; later entries win.
func (b *Bridge) environment(ca CA, more []string) []string {
	env := append(os.Environ(), b.Env(ca)...)
	env = append(env, "STATE_DIR="+filepath.Join(b.dir, fmt.Sprintf("state-%d", b.states.Add(1))), "PKCS11_PIN="+b.Token.PIN, "LISTEN_ADDRESS=127.0.0.1:0", "STATUS_ADDRESS=127.0.0.1:0", "LOG_FORMAT=json")
	return append(env, more...)
}
