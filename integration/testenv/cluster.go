package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	readyPoll    = 100 * time.Millisecond
	readyTimeout = 90 * time.Second
	portTries    = 5
	etcdDir      = "etcd" // of etcd's data

	// The servers run in the directory of the cluster, and this address is relative to it: it needs
	// no port, its length does not depend on the directory, and other users cannot connect.
	etcdURL     = "unix://etcd.sock"
	etcdPeerURL = "unix://etcd-peer.sock"
)

// ClusterOptions configure StartCluster. The zero value is a new cluster in a temporary directory.
type ClusterOptions struct {
	// Dir holds the state of the cluster. A cluster in the directory of an earlier one has the same
	// data, keys, CA and, if it is free, port. Empty: a temporary directory, which Stop removes.
	Dir string
	// APIServerArgs are more arguments of the API server, such as "--feature-gates=…".
	APIServerArgs []string
	// Detach lets the servers outlive the process and the context that started them. If a cluster
	// runs in Dir, StartCluster then returns that one.
	Detach bool
	// Progress, if not nil, receives a line for each slow step.
	Progress io.Writer
}

// A Cluster is a running API server with its etcd.
type Cluster struct {
	options   ClusterOptions
	dir       string
	url       string // of an API server that another program runs; empty: on 127.0.0.1
	bin       Bin
	etcd      process
	apiserver process
	admin     *rest.Config
	client    kubernetes.Interface
}

// StartCluster starts a cluster and waits until it is ready. Unless it is detached the cluster ends
// with ctx, so ctx must not have a deadline for the start alone.
func StartCluster(ctx context.Context, o ClusterOptions) (*Cluster, error) {
	bin, err := Binaries(ctx, o.Progress)
	if err != nil {
		return nil, err
	}
	dir, err := stateDir(o.Dir)
	if err != nil {
		return nil, err
	}
	c := in(dir)
	c.options, c.bin = o, bin
	if err := c.up(ctx); err != nil {
		return nil, fmt.Errorf("cluster in %s: %w", dir, errors.Join(err, c.giveUp()))
	}
	return c, nil
}

// giveUp stops the servers that a failed start has started, and no others.
func (c *Cluster) giveUp() error {
	var err error
	for _, p := range []*process{&c.apiserver, &c.etcd} {
		if p.reaped != nil {
			err = errors.Join(err, p.kill())
		}
	}
	return errors.Join(err, c.clean())
}

// StopCluster stops the cluster in dir, whichever process started it. Its state stays.
func StopCluster(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	c := in(dir)
	c.options.Dir = dir
	return c.Stop()
}

func in(dir string) *Cluster {
	return &Cluster{
		dir:       dir,
		etcd:      process{name: "etcd", dir: dir},
		apiserver: process{name: "kube-apiserver", dir: dir},
	}
}

func stateDir(dir string) (string, error) {
	if dir == "" {
		return os.MkdirTemp("", "hsm-signer-cluster-")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o700)
}

func (c *Cluster) up(ctx context.Context) error {
	if err := MakeSecrets(c.dir); err != nil {
		return err
	}
	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	return c.StartAPIServer(ctx)
}

func (c *Cluster) startEtcd(ctx context.Context) error {
	if c.options.Detach && c.etcd.running() {
		return nil
	}
	return c.etcd.start(ctx, c.options.Detach, c.bin.Etcd,
		"--name=testenv", "--data-dir="+etcdDir, "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+etcdPeerURL, "--initial-advertise-peer-urls="+etcdPeerURL,
		"--initial-cluster=testenv="+etcdPeerURL)
}

// StartAPIServer starts the API server on its former port, and waits until it is ready. The API
// server ends with ctx.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	if c.options.Detach && c.apiserver.running() {
		return c.waitUntilReady(ctx)
	}
	for try := 1; ; try++ {
		err := c.startAPIServerOnce(ctx)
		if err == nil {
			return nil
		}
		// Another process may have taken the port since it was chosen.
		if try == portTries ||
			!strings.Contains(c.apiserver.lastWords(), "address already in use") {
			return err
		}
	}
}

func (c *Cluster) startAPIServerOnce(ctx context.Context) error {
	port, err := c.choosePort()
	if err != nil {
		return err
	}
	args := append([]string{
		"--etcd-servers=" + etcdURL,
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		"--endpoint-reconciler-type=none",
		"--secure-port=" + strconv.Itoa(port), "--cert-dir=" + certDir,
		"--token-auth-file=" + tokensFile,
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction", "--disable-admission-plugins=ServiceAccount",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + accountKeyFile, "--service-account-signing-key-file=" +
			accountKeyFile,
		"--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged",
	}, c.options.APIServerArgs...)
	if err := c.apiserver.start(ctx, c.options.Detach, c.bin.APIServer, args...); err != nil {
		return err
	}
	if err := c.waitUntilReady(ctx); err != nil {
		return errors.Join(err, c.apiserver.kill())
	}
	return nil
}

// choosePort returns and stores the cluster's last port or, if that is not free, another one. Once
// clients know the port it does not change.
func (c *Cluster) choosePort() (int, error) {
	file := filepath.Join(c.dir, portFile)
	last, _ := os.ReadFile(file) // without a file any port will do
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", string(last)))
	if err != nil && c.admin == nil {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return 0, fmt.Errorf("no port for the API server: %w", err)
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	return port, os.WriteFile(file, []byte(strconv.Itoa(port)), 0o600)
}

func (c *Cluster) waitUntilReady(ctx context.Context) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, readyPoll, readyTimeout, true,
		func(ctx context.Context) (bool, error) {
			for _, p := range []*process{&c.etcd, &c.apiserver} {
				if !p.running() {
					return false, fmt.Errorf("%s has exited; its log %s ends:\n%s", p.name,
						p.logFile(),
						p.lastWords())
				}
			}
			last = c.ready(ctx)
			return last == nil, nil
		})
	if wait.Interrupted(err) {
		return fmt.Errorf("the API server is not ready: %w; its log is %s",
			errors.Join(err, last), c.apiserver.logFile())
	}
	return err
}

// ready returns an error unless the API server is ready. It reads the client configuration first:
// the API server creates its serving certificate on its first start.
func (c *Cluster) ready(ctx context.Context) error {
	admin, err := c.adminConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(admin)
	if err != nil {
		return err
	}
	if err := client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
		return err
	}
	if c.admin == nil {
		c.admin, c.client = admin, client
	}
	if c.url != "" { // the directory belongs to another program
		return nil
	}
	return WriteKubeconfig(c.Kubeconfig(), admin)
}

// Stop stops the servers and removes a temporary directory. It may be called again.
func (c *Cluster) Stop() error {
	return errors.Join(c.apiserver.kill(), c.etcd.kill(), c.clean())
}

// clean removes a temporary directory.
func (c *Cluster) clean() error {
	if c.options.Dir != "" {
		return nil
	}
	return os.RemoveAll(c.dir)
}

// Backup stops the servers, copies the data of etcd, and starts them again. The returned function
// restores the copy in the same way, as an administrator restores a snapshot of etcd. The servers
// end with ctx.
func (c *Cluster) Backup(ctx context.Context) (restore func() error, err error) {
	data, copied := filepath.Join(c.dir, etcdDir), filepath.Join(c.dir, etcdDir+".backup")
	if err := c.whileStopped(ctx, func() error {
		return errors.Join(os.RemoveAll(copied), os.CopyFS(copied, os.DirFS(data)))
	}); err != nil {
		return nil, fmt.Errorf("back up etcd: %w", err)
	}
	return func() error {
		err := c.whileStopped(ctx, func() error {
			return errors.Join(os.RemoveAll(data), os.CopyFS(data, os.DirFS(copied)))
		})
		if err != nil {
			return fmt.Errorf("restore etcd: %w", err)
		}
		return nil
	}, nil
}

// whileStopped stops the servers, calls do, and starts them again.
func (c *Cluster) whileStopped(ctx context.Context, do func() error) error {
	if err := errors.Join(c.apiserver.kill(), c.etcd.kill()); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	return c.StartAPIServer(ctx)
}

// RestartAPIServer stops the API server, and starts it with these arguments in place of
// [ClusterOptions.APIServerArgs].
func (c *Cluster) RestartAPIServer(ctx context.Context, args ...string) error {
	if err := c.StopAPIServer(); err != nil {
		return err
	}
	c.options.APIServerArgs = args
	return c.StartAPIServer(ctx)
}

// StopAPIServer kills the API server. etcd keeps the data.
func (c *Cluster) StopAPIServer() error { return c.apiserver.kill() }

// PauseAPIServer makes the API server hang: connections stay open without answers.
func (c *Cluster) PauseAPIServer() error { return c.apiserver.signal(syscall.SIGSTOP) }

// ResumeAPIServer ends a pause.
func (c *Cluster) ResumeAPIServer() error { return c.apiserver.signal(syscall.SIGCONT) }

// Dir returns the directory of the cluster's state and logs.
func (c *Cluster) Dir() string { return c.dir }
