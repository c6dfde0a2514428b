// Command demo shows hsm-signer's main job on this machine: a real API server with its etcd, a
// SoftHSM token, pods of Calico's service accounts that request certificates like Calico's init
// container, and impostors.
//
// It exits with 0 only if every requester got the right answer. With KEEP=1 it continues until it
// is interrupted, and prints commands for looking around.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"hsm-signer/integration/demo"
	"hsm-signer/integration/testenv"
)

func main() { testenv.Main("demo", run) }

func run(ctx context.Context, _ []string) (err error) {
	keep := os.Getenv("KEEP") == "1"
	out := demo.NewScreen(os.Stdout)
	dir, err := os.MkdirTemp("", "hsm-signer-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	out.Step("A real API server and etcd, and a SoftHSM token")
	env, err := testenv.New(ctx, testenv.Options{Dir: dir, Progress: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, env.Close()) }()
	out.Print("API server at " + env.Cluster.Config().Host + "; token \"" + env.Token.Label +
		"\" behind " + env.Token.Module)

	d, ca, err := serve(ctx, out, env)
	if err != nil {
		return err
	}
	defer func() {
		_, stopErr := d.Stop()
		err = errors.Join(err, stopErr)
	}()

	out.Step("Pods ask: each open-source component of Calico, and impostors")
	shown := demo.Demo{Cluster: env.Cluster, SignerName: testenv.SignerName, CACert: ca.CertFile,
		Dir: dir}
	outcomes, err := shown.AskAll(ctx)
	if err != nil {
		return fmt.Errorf("%w; the log of hsm-signer:\n%s", err, d.Log())
	}
	out.Table(outcomes)
	if keep {
		lookAround(ctx, out, env, ca, d)
	}
	return demo.Judge(out, outcomes)
}

// serve creates a CA, checks every precondition and starts the daemon.
func serve(ctx context.Context, out *demo.Screen, env *testenv.Env) (*testenv.Daemon, testenv.CA,
	error) {
	out.Step("hsm-signer ca create: the key is made in the token and never leaves it")
	ca, text, err := env.CreateCA(ctx, "ecdsa-p256")
	if err != nil {
		return nil, ca, err
	}
	out.Print(text)

	out.Step("hsm-signer check: every precondition, with the rights of deploy/base/rbac.yaml")
	text, stderr, code := env.Command(ctx, ca, nil, "check")
	out.Print(text)
	if code != 0 {
		return nil, ca, fmt.Errorf("hsm-signer check: exit code %d: %s", code, stderr)
	}

	out.Step("hsm-signer run")
	d, err := env.Run(ctx, ca)
	if err != nil {
		return nil, ca, err
	}
	if err := d.WaitReady(ctx); err != nil {
		_, stopErr := d.Stop()
		return nil, ca, errors.Join(err, stopErr)
	}
	out.Print("ready; it watches the requests of " + testenv.SignerName)
	return d, ca, nil
}

// lookAround prints commands for another terminal, and waits for an interrupt.
func lookAround(ctx context.Context, out *demo.Screen, env *testenv.Env, ca testenv.CA,
	d *testenv.Daemon) {
	out.Step("KEEP=1: everything goes on until you press Ctrl-C. To look around, in another " +
		"terminal:")
	out.Print("export KUBECONFIG=" + env.Cluster.Kubeconfig() + `
kubectl get csr                      # who asked, and what came of it
kubectl describe csr NAME            # the conditions and the events
kubectl get events --field-selector involvedObject.kind=CertificateSigningRequest
curl http://` + d.Address() + `/readyz
openssl x509 -in ` + ca.CertFile + ` -noout -text`)
	<-ctx.Done()
}
