// Command compose does what docker-compose.yml needs in addition to hsm-signer: it creates the
// secrets of the API server, gives hsm-signer its rights, and runs the pods that request
// certificates.
//
//	compose secrets DIR                     create the files that the API server needs
//	compose authorize DIR URL RBAC FILE     apply the manifests in RBAC; write hsm-signer's
//
// kubeconfig
//
//	compose client DIR URL CA               run pods and impostors; exit 0 if all answers are right
//	compose binaries OUT                    copy kube-apiserver and etcd into the directory OUT
//
// DIR is the API server's directory, URL where it listens, CA the file with the CA's certificate.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"hsm-signer/integration/demo"
	"hsm-signer/integration/testenv"
)

const (
	signerName     = "example.com/calico" // that RBAC allows
	serviceAccount = "hsm-signer"         // and its namespace, which are in RBAC too
)

var errUsage = errors.New("usage: compose secrets DIR | authorize DIR URL RBAC FILE | client DIR " +
	"URL CA | binaries OUT")

func main() { testenv.Main("compose", run) }

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "secrets":
		return testenv.MakeSecrets(args[1])
	case len(args) == 5 && args[0] == "authorize":
		return authorize(ctx, args[1], args[2], args[3], args[4])
	case len(args) == 4 && args[0] == "client":
		return client(ctx, args[1], args[2], args[3])
	case len(args) == 2 && args[0] == "binaries":
		return binaries(ctx, args[1])
	}
	return errUsage
}

// authorize gives hsm-signer and Calico's pods their rights.
func authorize(ctx context.Context, dir, url, rbac, kubeconfig string) error {
	cluster, err := testenv.Attach(ctx, dir, url)
	if err != nil {
		return err
	}
	manifests, err := os.ReadFile(rbac)
	if err != nil {
		return err
	}
	if err := cluster.Apply(ctx, manifests); err != nil {
		return fmt.Errorf("apply %s: %w", rbac, err)
	}
	if err := cluster.AllowRequests(ctx, ""); err != nil {
		return err
	}
	token, err := cluster.UnboundToken(ctx, serviceAccount, serviceAccount)
	if err != nil {
		return err
	}
	return testenv.WriteKubeconfig(kubeconfig, cluster.ConfigFor(token))
}

// client runs all requesters.
func client(ctx context.Context, dir, url, ca string) error {
	cluster, err := testenv.Attach(ctx, dir, url)
	if err != nil {
		return err
	}
	temp, err := os.MkdirTemp("", "certificates-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	out := demo.NewScreen(os.Stdout)
	out.Step("Pods ask: each open-source component of Calico, and impostors")
	d := demo.Demo{Cluster: cluster, SignerName: signerName, CACert: ca, Dir: temp}
	outcomes, err := d.AskAll(ctx)
	if err != nil {
		return err
	}
	out.Table(outcomes)
	return demo.Judge(out, outcomes)
}

// binaries copies the servers, and builds them if they are missing.
func binaries(ctx context.Context, out string) error {
	bin, err := testenv.Binaries(ctx, os.Stderr)
	if err != nil {
		return err
	}
	for _, path := range []string{bin.APIServer, bin.Etcd} {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(out, filepath.Base(path)), content,
			0o755); err != nil {
			return err
		}
	}
	return nil
}
