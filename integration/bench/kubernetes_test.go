package bench

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	kubesigner "k8s.io/kubernetes/pkg/controller/certificates/signer"

	"hsm-signer/integration/must"
)

// kubernetesOwn is the name of the contender from kube-controller-manager.
const kubernetesOwn = "Kubernetes' controller"

// kubernetes is the controller of kube-controller-manager that signs client certificates, with a
// key in a file, without a limit on its calls, and with as many workers as hsm-signer has.
func (f *fixture) kubernetes(b *testing.B, client kubernetes.Interface) contender {
	b.Helper()
	const name = certificatesv1.KubeAPIServerClientSignerName
	l := newSoftLoop(b, client, name)
	key := must.Get(x509.MarshalPKCS8PrivateKey(l.key))(b)
	dir := b.TempDir()
	files := map[string]string{"CERTIFICATE": "ca.crt", "PRIVATE KEY": "ca.key"}
	for kind, der := range map[string][]byte{"CERTIFICATE": l.ca.Raw, "PRIVATE KEY": key} {
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		must.OK(b, os.WriteFile(filepath.Join(dir, files[kind]), text, 0o600))
	}
	run := func(ctx context.Context, started func()) error {
		all := informers.NewSharedInformerFactory(client, 0)
		controller, err := kubesigner.NewKubeAPIServerClientCSRSigningController(ctx, client,
			all.Certificates().V1().CertificateSigningRequests(), filepath.Join(dir, "ca.crt"),
			filepath.Join(dir, "ca.key"), time.Hour)
		if err != nil {
			return err
		}
		all.Start(ctx.Done())
		started()
		controller.Run(ctx, limitWorkers)
		return ctx.Err()
	}
	return contender{kubernetesOwn, name, func(b *testing.B) (int, func()) {
		return 0, inBackground(b, run)
	}}
}
