package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/must"
)

// A volume is what kubelet projects into a pod: its credentials and the signer's trust anchors, in
// PEM.
type volume struct {
	pod                 *corev1.Pod
	key, chain, anchors []byte
}

// volumes returns the volumes of the pods.
func (s ownSigner) volumes(t *testing.T, k *kubelet, pods ...*corev1.Pod) (all []volume) {
	t.Helper()
	bundle, err := shared.Cluster.Client().CertificatesV1().ClusterTrustBundles().Get(t.Context(),
		s.bundle(), metav1.GetOptions{})
	must.OK(t, err)
	for _, pod := range pods {
		k.requireBundle(t, pod, nil)
		key, chain, err := k.bundle(pod)
		must.OK(t, err)
		all = append(all, volume{pod, key, chain, []byte(bundle.Spec.TrustBundle)})
	}
	return all
}

// id is the SPIFFE ID of the pod.
func (v volume) id() string {
	return fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", podTrustDomain, v.pod.Namespace,
		v.pod.Spec.ServiceAccountName)
}

// listen serves one TLS connection as the pod, and then sends the SPIFFE ID of the client, or why
// the handshake failed.
func (v volume) listen(t *testing.T) (address string, client <-chan string) {
	t.Helper()
	pair, err := tls.X509KeyPair(v.chain, v.key)
	must.OK(t, err)
	anchors := x509.NewCertPool()
	if !anchors.AppendCertsFromPEM(v.anchors) {
		t.Fatal("there are no trust anchors")
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: anchors,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	})
	must.OK(t, err)
	t.Cleanup(func() { _ = listener.Close() }) // it ends Accept
	result := make(chan string, 1)
	go func() { result <- serveOnce(listener) }()
	return listener.Addr().String(), result
}

func serveOnce(listener net.Listener) string {
	connection, err := listener.Accept()
	if err != nil {
		return err.Error()
	}
	defer connection.Close()
	secure := connection.(*tls.Conn)
	if err := secure.HandshakeContext(context.Background()); err != nil {
		return err.Error()
	}
	return secure.ConnectionState().PeerCertificates[0].URIs[0].String()
}

// connect runs openssl as the pod, or with its trust anchors alone, until the handshake has ended.
func (v volume) connect(t *testing.T, address string, asPod bool) error {
	t.Helper()
	dir := t.TempDir()
	args := []string{"s_client", "-connect", address, "-verify_return_error", "-brief",
		"-CAfile", filepath.Join(dir, "ca.pem")}
	for name, text := range map[string][]byte{"ca.pem": v.anchors, "tls.key": v.key,
		"tls.crt": v.chain} {
		must.OK(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	if asPod {
		args = append(args, "-key", filepath.Join(dir, "tls.key"), "-cert",
			filepath.Join(dir, "tls.crt"), "-cert_chain", filepath.Join(dir, "tls.crt"))
	}
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Stdin = bytes.NewReader(nil) // the end of its input ends it
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Two pods talk mutual TLS with what kubelet mounts: their credentials and the signer's
// ClusterTrustBundle. Each knows who the other is; a client without credentials is refused.
func TestPodsTalkMutualTLS(t *testing.T) {
	t.Parallel()
	s, _ := newPodSigner(t, "pods-tls", "TRUST_BUNDLE_FILE="+ca.CertFile)
	s.allowBundle(t)
	root, err := os.ReadFile(ca.CertFile)
	must.OK(t, err)
	s.requireBundle(t, string(root))
	const node = "kubelet-tls"
	server, client := s.newVolumePod(t, node, "ECDSAP256"), s.newVolumePod(t, node, "ED25519")
	both := s.volumes(t, startKubelet(t, node, server, client), server, client)

	address, who := both[0].listen(t)
	must.OK(t, both[1].connect(t, address, true))
	if got := <-who; got != both[1].id() {
		t.Errorf("the client is %q; want %q", got, both[1].id())
	}
	address, who = both[0].listen(t)
	_ = both[1].connect(t, address, false) // in TLS 1.3 the client may not hear of the refusal
	if got := <-who; got != "tls: client didn't provide a certificate" {
		t.Errorf("a client without credentials: %q", got)
	}
}
