// Command demo shows hsm-signer's main job on real parts, all of them on this
// machine: an API server with its etcd, a SoftHSM token, pods of Calico's
// service accounts that ask as Calico's init container does, and impostors.
//
// It ends with 0 only when everyone got what they should. With KEEP=1 it goes
// on until it is interrupted, and says how to look around.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"hsm-signer/integration/bridge"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv("KEEP") == "1"); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, keep bool) (err error) {
	out := newScreen(os.Stdout)
	dir, err := os.MkdirTemp("", "hsm-signer-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	out.step("A real API server and etcd, and a SoftHSM token")
	b, err := bridge.New(ctx, bridge.Options{Dir: dir, Progress: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	out.print("API server at " + b.Cluster.Config().Host + "; token \"" + b.Token.Label + "\" behind " + b.Token.Module)

	d, ca, err := serve(ctx, out, b)
	if err != nil {
		return err
	}
	defer func() {
		_, stopErr := d.Stop()
		err = errors.Join(err, stopErr)
	}()

	out.step("Pods ask: each open-source component of Calico, and impostors")
	outcomes, err := askAll(ctx, b, ca)
	if err != nil {
		return fmt.Errorf("%w; the log of hsm-signer:\n%s", err, d.Log())
	}
	out.table(outcomes)
	if keep {
		lookAround(ctx, out, b, ca, d)
	}
	return judge(out, outcomes)
}

// serve has the ceremony make a CA, checks every precondition and starts the daemon.
func serve(ctx context.Context, out *screen, b *bridge.Bridge) (*bridge.Daemon, bridge.CA, error) {
	out.step("hsm-signer ca create: the key is made in the token and never leaves it")
	ca, text, err := b.CreateCA(ctx, "ecdsa-p256")
	if err != nil {
		return nil, ca, err
	}
	out.print(text)

	out.step("hsm-signer check: every precondition, with the rights of deploy/rbac.yaml")
	text, stderr, code := b.Command(ctx, ca, nil, "check")
	out.print(text)
	if code != 0 {
		return nil, ca, fmt.Errorf("hsm-signer check: exit code %d: %s", code, stderr)
	}

	out.step("hsm-signer run")
	d, err := b.Run(ctx, ca)
	if err != nil {
		return nil, ca, err
	}
	if err := d.WaitReady(ctx); err != nil {
		_, stopErr := d.Stop()
		return nil, ca, errors.Join(err, stopErr)
	}
	out.print("ready; it watches the requests of " + bridge.SignerName)
	return d, ca, nil
}

// judge compares what everyone got with what they should have got.
func judge(out *screen, outcomes []outcome) error {
	var wrong []string
	for _, o := range outcomes {
		if o.fault != "" {
			wrong = append(wrong, o.who+" asking for "+o.asked+": "+o.fault)
		}
	}
	if len(wrong) > 0 {
		return errors.New("not everyone got what they should:\n  " + strings.Join(wrong, "\n  "))
	}
	out.step("All went as it should: every component has its certificate, openssl verifies each, every impostor was denied")
	return nil
}

// lookAround says how, and waits to be interrupted.
func lookAround(ctx context.Context, out *screen, b *bridge.Bridge, ca bridge.CA, d *bridge.Daemon) {
	out.step("KEEP=1: everything goes on until you press Ctrl-C. To look around, in another terminal:")
	out.print("export KUBECONFIG=" + b.Cluster.Kubeconfig() + `
kubectl get csr                      # who asked, and what came of it
kubectl describe csr NAME            # the conditions and the events
kubectl get events --field-selector involvedObject.kind=CertificateSigningRequest
curl http://` + d.Address() + `/readyz
openssl x509 -in ` + ca.CertFile + ` -noout -text`)
	<-ctx.Done()
}
