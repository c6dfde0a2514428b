// Package testenv runs hsm-signer on real parts for tests, the demonstration and the benchmarks: a
// kube-apiserver with its etcd, PKCS#11 tokens of SoftHSM, and hsm-signer as a separate process
// with only the rights of deploy/base/rbac.yaml. Everything runs on this machine and listens on
// 127.0.0.1.
//
// An Env has all of these parts. A Cluster is the API server alone. There are no controllers, no
// scheduler and no kubelet: methods of Cluster and Env create nodes, running pods with addresses
// and tokens bound to pods through the API.
//
// A Cluster stops with Stop, with the context that it was started with and, on Linux, with the
// process that started it, so no server outlives its test. A Daemon stops with its context. If this
// machine lacks something that a test needs, the error says what to install; nothing is skipped.
//
// The methods of a Cluster that stop, start, pause and resume servers must not be called
// concurrently with each other. All others are safe for concurrent use.
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
	"runtime"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
)

// SignerName is the signer that deploy/base/rbac.yaml allows.
const SignerName = "example.com/calico"

// serviceAccount is hsm-signer's, and its namespace's name too, as in deploy/base/rbac.yaml.
const serviceAccount = "hsm-signer"

// Options configure New.
type Options struct {
	// Dir holds the token, the CAs and the kubeconfig file. The caller removes it.
	Dir string
	// Binary is the path of an hsm-signer that is already built. If empty, New builds one.
	Binary string
	// Progress, if not nil, receives a line for each slow step.
	Progress io.Writer
}

// An Env has everything that hsm-signer needs, and runs it.
type Env struct {
	Cluster *Cluster
	Token   *SoftHSM

	dir        string
	binary     string
	kubeconfig string       // of hsm-signer's service account
	states     atomic.Int64 // makes names of files and directories unique
	pods       atomic.Int64
	addresses  atomic.Uint32
}

// New builds hsm-signer, creates a token, starts a cluster and gives hsm-signer its rights.
func New(ctx context.Context, o Options) (*Env, error) {
	e := &Env{dir: o.Dir, binary: o.Binary, kubeconfig: filepath.Join(o.Dir, "kubeconfig")}
	if err := e.set(ctx, o.Progress); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func (e *Env) set(ctx context.Context, progress io.Writer) (err error) {
	if e.binary == "" {
		e.binary = filepath.Join(e.dir, "hsm-signer")
		if err := Build(ctx, e.binary); err != nil {
			return err
		}
	}
	if e.Token, err = NewSoftHSM(ctx, filepath.Join(e.dir, "token"), "ca"); err != nil {
		return err
	}
	if e.Cluster, err = StartCluster(ctx, ClusterOptions{Progress: progress}); err != nil {
		return err
	}
	return e.authorize(ctx)
}

// Build builds the hsm-signer of this repository.
func Build(ctx context.Context, binary string) error {
	_, err := goOutput(ctx, root(), nil, "build", "-o", binary, "./cmd/hsm-signer")
	return err
}

// BuildClient builds the program for [load.Processes].
func BuildClient(ctx context.Context, binary string) error {
	_, err := goOutput(ctx, filepath.Join(root(), "integration"), nil, "build", "-o", binary,
		"./cmd/calicoclient")
	return err
}

// root returns the root of the repository.
func root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// authorize applies deploy/base/rbac.yaml and writes the kubeconfig of its service account.
func (e *Env) authorize(ctx context.Context) error {
	if err := e.apply(ctx, "base/rbac.yaml"); err != nil {
		return err
	}
	if err := e.Cluster.AllowRequests(ctx, ""); err != nil {
		return err
	}
	return e.KubeconfigVia(ctx, e.kubeconfig, e.Cluster.ConfigFor)
}

// apply applies a file of deploy.
func (e *Env) apply(ctx context.Context, file string) error {
	manifests, err := os.ReadFile(filepath.Join(root(), "deploy", file))
	if err == nil {
		err = e.Cluster.Apply(ctx, manifests)
	}
	if err != nil {
		return fmt.Errorf("apply deploy/%s: %w", file, err)
	}
	return nil
}

// KubeconfigVia writes a kubeconfig file with which hsm-signer's service account uses another path
// to the API server: config returns the client configuration of the token's owner.
func (e *Env) KubeconfigVia(ctx context.Context, path string,
	config func(token string) *rest.Config) error {
	return e.kubeconfigOf(ctx, serviceAccount, path, config)
}

// kubeconfigOf writes the kubeconfig file of a service account in hsm-signer's namespace.
func (e *Env) kubeconfigOf(ctx context.Context, account, path string,
	config func(token string) *rest.Config) error {
	token, err := e.Cluster.UnboundToken(ctx, serviceAccount, account)
	if err != nil {
		return err
	}
	return WriteKubeconfig(path, config(token))
}

// Binary returns the path of hsm-signer.
func (e *Env) Binary() string { return e.binary }

// Close stops the cluster.
func (e *Env) Close() error {
	if e.Cluster == nil {
		return nil
	}
	return e.Cluster.Stop()
}

// A CA has its key in the token.
type CA struct {
	KeyLabel string
	CertFile string // PEM
}

// CreateCA creates a CA with "hsm-signer ca create", and returns what that printed. The key type is
// also the label of the key.
func (e *Env) CreateCA(ctx context.Context, keyType string) (ca CA, output string, err error) {
	ca = CA{KeyLabel: keyType, CertFile: filepath.Join(e.dir, keyType+".crt")}
	stdout, stderr, code := e.Command(ctx, ca, nil, "ca", "create", "--key-type", keyType,
		"--subject", "CN=Calico CA,O=Example", "--out", ca.CertFile)
	if code != 0 {
		return ca, "", fmt.Errorf("hsm-signer ca create --key-type %s: exit code %d: %s", keyType,
			code, stderr)
	}
	return ca, stdout, nil
}

// Command runs a command of hsm-signer, and returns its output and exit code. Variables in env have
// precedence. A command that takes too long is killed and has the exit code -1.
func (e *Env) Command(ctx context.Context, ca CA, env []string, args ...string) (stdout,
	stderr string, code int) {
	ctx, cancel := context.WithTimeout(ctx, patienceWith(args))
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, e.binary, args...)
	cmd.Env = e.environment(ca, env)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// WithBudget writes a built-in policy with this budget to a file, and returns the setting for it.
func (e *Env) WithBudget(ctx context.Context, ca CA, policy, budget string) (setting string,
	err error) {
	text, stderr, code := e.Command(ctx, ca, nil, "policy", "show", policy)
	if code != 0 {
		return "", fmt.Errorf("hsm-signer policy show %s: exit code %d: %s", policy, code, stderr)
	}
	file := filepath.Join(e.dir, fmt.Sprintf("policy-%d.yaml", e.states.Add(1)))
	return "POLICY_FILE=" + file, os.WriteFile(file, []byte(text+"\nbudget: "+budget+"\n"), 0o600)
}

// LargeBudget is a budget that no test exhausts.
const LargeBudget = "{total: 1000000, perServiceAccount: 100%, perPod: 1000000}"

// patienceWith returns how long a command may take. Only the creation of keys is slow: SoftHSM
// needs half a minute or several times that for an RSA-8192 key.
func patienceWith(args []string) time.Duration {
	if len(args) > 0 && args[0] == "ca" {
		return 4 * time.Minute
	}
	return patience
}

// Environ returns the environment variables for this CA, without the PIN.
func (e *Env) Environ(ca CA) []string {
	return []string{
		e.Token.Env(),
		"PKCS11_MODULE=" + e.Token.Module,
		"PKCS11_TOKEN_LABEL=" + e.Token.Label,
		"CA_KEY_LABEL=" + ca.KeyLabel,
		"CA_CERT_FILE=" + ca.CertFile,
		"SIGNER_NAME=" + SignerName,
		"KUBECONFIG=" + e.kubeconfig,
	}
}

// environment returns the whole environment of a process. Later variables have precedence.
func (e *Env) environment(ca CA, more []string) []string {
	env := append(os.Environ(), e.Environ(ca)...)
	state := filepath.Join(e.dir, fmt.Sprintf("state-%d", e.states.Add(1)))
	env = append(env, "STATE_DIR="+state, "PKCS11_PIN="+e.Token.PIN,
		"LISTEN_ADDRESS=127.0.0.1:0", "STATUS_ADDRESS=127.0.0.1:0", "LOG_FORMAT=json")
	return append(env, more...)
}
