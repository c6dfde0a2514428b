package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/kubelet/clustertrustbundle"

	"hsm-signer/integration/must"
)

// Two pods talk with mutual TLS, each with the certificate and the roots that kubelet's own code
// gives its volume.
func TestPodsTalkWithWhatKubeletMounts(t *testing.T) {
	t.Parallel()
	const name, node = "pods-tls", "kubelet-tls"
	ownSigner(name).allowBundle(t)
	s, _ := newPodSigner(t, name, "TRUST_BUNDLE_FILE="+ca.CertFile)
	one, other := s.newVolumePod(t, node, "ECDSAP256"), s.newVolumePod(t, node, "ED25519")
	k := startKubelet(t, node, one, other)
	k.requireBundle(t, one, nil)
	k.requireBundle(t, other, nil)
	roots := s.mountedRoots(t)
	server, client := k.tlsOf(t, one, other, roots), k.tlsOf(t, other, one, roots)
	if err := handshake(t, server, client); err != nil {
		t.Errorf("the two pods: %v", err)
	}
	if err := handshake(t, server, k.tlsOf(t, other, newPlainPod(t), roots)); err == nil {
		t.Error("a pod talks to another than it means to")
	}
	if err := handshake(t, server, k.tlsOf(t, other, one, x509.NewCertPool())); err == nil {
		t.Error("a pod talks to one whose root it does not have")
	}
	stranger := client.Clone()
	stranger.Certificates = nil
	if err := handshake(t, server, stranger); err == nil {
		t.Error("a client without a certificate is served")
	}
}

// mountedRoots are the roots that kubelet's code gives a volume with this signer name and an empty
// label selector.
func (s ownSigner) mountedRoots(t *testing.T) *x509.CertPool {
	t.Helper()
	kubelet := clustertrustbundle.NewLazyInformerManager(t.Context(), shared.Cluster.Client(), 10)
	roots := x509.NewCertPool()
	must.Eventually(t, "the roots of "+s.name(), func(ctx context.Context) (bool, error) {
		text, err := kubelet.GetTrustAnchorsBySigner(ctx, s.name(), &metav1.LabelSelector{}, false)
		return err == nil && roots.AppendCertsFromPEM(text), nil
	})
	return roots
}

// tlsOf is what a program in the pod makes of its volume, to talk to the other pod and to no one
// else: SPIFFE's check of a peer (X509-SVID, section 5).
func (k *kubelet) tlsOf(t *testing.T, pod, peer *corev1.Pod, roots *x509.CertPool) *tls.Config {
	t.Helper()
	key, chain, err := k.bundle(pod)
	must.OK(t, err)
	pair := must.Get(tls.X509KeyPair(chain, key))(t)
	want := fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", podTrustDomain, peer.Namespace,
		peer.Spec.ServiceAccountName)
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert,
		InsecureSkipVerify: true, // of the host's name, which no certificate has
		VerifyConnection: func(state tls.ConnectionState) error {
			leaf, above := state.PeerCertificates[0], x509.NewCertPool()
			for _, cert := range state.PeerCertificates[1:] {
				above.AddCert(cert)
			}
			_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: above,
				KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			if err == nil && (len(leaf.URIs) != 1 || leaf.URIs[0].String() != want) {
				err = fmt.Errorf("the peer is %v, not %s", leaf.URIs, want)
			}
			return err
		},
	}
}

// handshake connects the two, and returns why either turned the other away.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	listener := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		connection, err := listener.Accept()
		if err == nil {
			defer connection.Close()
			err = tls.Server(connection, server).HandshakeContext(t.Context())
		}
		served <- err
	}()
	connection, err := (&tls.Dialer{Config: client}).DialContext(t.Context(), "tcp",
		listener.Addr().String())
	if err == nil {
		defer connection.Close()
	}
	return errors.Join(err, <-served)
}
