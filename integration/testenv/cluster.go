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

	// The servers' working directory is the cluster's, and this address is
	// relative to it: no port, no limit on the length of the directory's name,
	// and nobody else on the machine can connect.
	etcdURL     = "unix://etcd.sock"
	etcdPeerURL = "unix://etcd-peer.sock"
)

// ClusterOptions say what Cluster to start. The zero ClusterOptions are a fresh one in a
// temporary directory.
type ClusterOptions struct {
	// Dir keeps the cluster's state. A cluster started in the directory of an
	// earlier one is the same: its data, its keys, its CA and, where it is still
	// free, its port. Empty means a temporary directory, removed by Stop.
	Dir string
	// APIServerArgs are added to the API server's, e.g. "--feature-gates=…".
	APIServerArgs []string
	// Detach lets the servers outlive the process and the context that started
	// them. A cluster that runs in Dir already is then taken over as it is.
	Detach bool
	// Progress is told of what takes long; nil for nobody.
	Progress io.Writer
}

// Cluster is an API server with its etcd, running.
type Cluster struct {
	options   ClusterOptions
	dir       string
	url       string // of an API server that someone else runs; empty: on 127.0.0.1
	bin       Bin
	etcd      process
	apiserver process
	admin     *rest.Config
	client    kubernetes.Interface
}

// StartCluster starts a cluster and waits until it is ready. Unless it is detached it
// ends with ctx, so ctx must not be one with a deadline meant for the start.
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

// giveUp ends what a start that failed has started, and nothing that ran
// already.
func (c *Cluster) giveUp() error {
	var err error
	for _, p := range []*process{&c.apiserver, &c.etcd} {
		if p.reaped != nil {
			err = errors.Join(err, p.kill())
		}
	}
	return errors.Join(err, c.clean())
}

// StopCluster stops the cluster that runs in dir, whoever started it. Its state stays.
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
	if err := makeSecrets(c.dir); err != nil {
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

// StartAPIServer starts the API server, on the port it had before, and waits
// until it is ready. Like the cluster's it lasts no longer than ctx.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	if c.options.Detach && c.apiserver.running() {
		return c.waitUntilReady(ctx)
	}
	for try := 1; ; try++ {
		err := c.startAPIServerOnce(ctx)
		if err == nil {
			return nil
		}
		// Someone may have taken the port in the moment since it was chosen.
		if try == portTries || !strings.Contains(c.apiserver.lastWords(), "address already in use") {
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
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
		"--secure-port=" + strconv.Itoa(port), "--cert-dir=" + certDir,
		"--token-auth-file=" + tokensFile,
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction", "--disable-admission-plugins=ServiceAccount",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + accountKeyFile, "--service-account-signing-key-file=" + accountKeyFile,
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

// choosePort is the cluster's last port, if there is one and it is free, or
// else any that is; it writes down which. Once clients know the port it stays.
func (c *Cluster) choosePort() (int, error) {
	file := filepath.Join(c.dir, portFile)
	last, _ := os.ReadFile(file) // none is any
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
	err := wait.PollUntilContextTimeout(ctx, readyPoll, readyTimeout, true, func(ctx context.Context) (bool, error) {
		for _, p := range []*process{&c.etcd, &c.apiserver} {
			if !p.running() {
				return false, fmt.Errorf("%s has ended; its log %s ends:\n%s", p.name, p.logFile(), p.lastWords())
			}
		}
		last = c.ready(ctx)
		return last == nil, nil
	})
	if wait.Interrupted(err) {
		return fmt.Errorf("the API server does not get ready: %w; its log is %s", errors.Join(err, last), c.apiserver.logFile())
	}
	return err
}

// ready asks the API server whether it is ready, and learns how to speak to it
// first: it makes its serving certificate when it starts for the first time.
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
	if c.url != "" { // the directory is someone else's
		return nil
	}
	return WriteKubeconfig(c.Kubeconfig(), admin)
}

// Stop ends the servers, and removes a temporary directory. A cluster that has
// stopped can be stopped again.
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

// Backup stops the servers, copies what etcd holds, and starts them again. What it returns sets the cluster back
// to that copy, in the same way: as an administrator does with a snapshot of etcd. The servers last no longer
// than ctx.
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

// whileStopped does something between a stop and a start of the servers.
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

// StopAPIServer kills the API server; etcd keeps the data.
func (c *Cluster) StopAPIServer() error { return c.apiserver.kill() }

// PauseAPIServer lets the API server hang: connections stay, answers do not
// come.
func (c *Cluster) PauseAPIServer() error { return c.apiserver.signal(syscall.SIGSTOP) }

// ResumeAPIServer ends a pause.
func (c *Cluster) ResumeAPIServer() error { return c.apiserver.signal(syscall.SIGCONT) }

// Dir is where the cluster keeps its state and its logs.
func (c *Cluster) Dir() string { return c.dir }
