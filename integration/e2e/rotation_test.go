package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/kubelet/clustertrustbundle"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// rotationPolicy has rules for Calico's node and Typha, and for pod certificates.
const rotationPolicy = `
version: 1
rules:
  - name: node
    from: {serviceAccounts: [calico-system/calico-node]}
    grant:
      dnsNames: [typha-client]
      ipAddresses: [pod]
      keys: [ecdsa-p256, rsa-2048]
      usages: [digital signature, key encipherment, key agreement, server auth, client auth]
  - name: typha
    from: {serviceAccounts: [calico-system/calico-typha]}
    grant:
      dnsNames: [typha-server]
      ipAddresses: [pod]
      keys: [ecdsa-p256, rsa-2048]
      usages: [digital signature, key encipherment, key agreement, server auth, client auth]
  - name: pods
    from: {podCertificates: true, serviceAccounts: ["*/*"]}
    grant:
      uris: ["spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}"]
      keys: [ecdsa-p256, ed25519]
      usages: [digital signature, client auth, server auth]
`

// A rotating is an installation with two CAs.
type rotating struct {
	ownSigner
	former, next testenv.CA
	env          []string // of each replica
}

// newRotating creates the next CA. SoftHSM may not find its token while another process writes it, so
// call this before t.Parallel.
func newRotating(t *testing.T, name string) *rotating {
	t.Helper()
	r := &rotating{ownSigner: newOwnSigner(t, name), former: ca, next: testenv.CA{KeyLabel: name,
		CertFile: filepath.Join(t.TempDir(), "next.crt")}}
	createCA(t, r.next, "--subject", "CN=Next CA,O=Example", "--out", r.next.CertFile)
	r.env = r.ownSigner.env(append([]string{"ROTATION_TRUST_TIME=1s"}, electing...)...)
	return r
}

// both are the settings of a replica with both CAs, and with these.
func (r *rotating) both(more ...string) []string {
	return slices.Concat(r.env, []string{"NEXT_CA_CERT_FILE=" + r.next.CertFile,
		"NEXT_CA_KEY_LABEL=" + r.next.KeyLabel}, more)
}

// rotate gives a command of "ca rotate".
func (r *rotating) rotate(t *testing.T, args ...string) printout {
	t.Helper()
	return command(t, r.former, r.both(), append([]string{"ca", "rotate"}, args...)...)
}

// step takes a step, which must lead to the phase.
func (r *rotating) step(t *testing.T, phase string, args ...string) {
	t.Helper()
	r.rotate(t, args...).prints(t, 0, "the phase is "+phase)
}

// stepLater takes a step as soon as its guard is open.
func (r *rotating) stepLater(t *testing.T, phase string, args ...string) {
	t.Helper()
	var last printout
	must.Eventually(t, strings.Join(args, " "), func(context.Context) (bool, error) {
		last = r.rotate(t, args...)
		if last.code == 2 && !strings.Contains(last.stderr, "ROTATION_TRUST_TIME") {
			last.prints(t, 0)
		}
		return last.code != 2, nil
	})
	last.prints(t, 0, "the phase is "+phase)
}

// refused requires that a step is refused for these reasons.
func (r *rotating) refused(t *testing.T, args []string, words ...string) {
	t.Helper()
	r.rotate(t, args...).complains(t, 2, words...)
}

// requireSigns requires that a new pod gets a certificate of the CA.
func (r *rotating) requireSigns(t *testing.T, by testenv.CA) {
	t.Helper()
	p := newPod(t, node)
	requireIssuedBy(t, requireCertificate(t, p, r.initContainer(p)), by)
	must.OK(t, shared.Cluster.Client().CoreV1().Pods(p.Namespace).Delete(t.Context(), p.Name,
		metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
}

func requireIssuedBy(t *testing.T, cert *x509.Certificate, by testenv.CA) {
	t.Helper()
	if err := cert.CheckSignatureFrom(certificateOf(t, by)); err != nil {
		t.Errorf("%s has issued the certificate: %v", cert.Issuer, err)
	}
}

// poolOf returns what a client trusts whose caCert holds these CAs.
func poolOf(t *testing.T, cas ...testenv.CA) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	for _, ca := range cas {
		pool.AddCert(certificateOf(t, ca))
	}
	return pool
}

// A peer is a program that talks with mutual TLS.
type peer func() (*tls.Config, error)

// peers connect with each other all the time, each pair of them.
type peers struct {
	mu    sync.Mutex
	all   map[string]peer
	made  int
	fault []error
}

// set replaces a peer, as when its pod is restarted.
func (p *peers) set(name string, one peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all[name] = one
}

// connect has each pair shake hands once.
func (p *peers) connect(t *testing.T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a, server := range p.all {
		for b, client := range p.all {
			if a == b || strings.HasPrefix(a, "volume") != strings.HasPrefix(b, "volume") {
				continue
			}
			serving, err := server()
			calling, other := client()
			if err = errors.Join(err, other); err == nil {
				err = handshake(t, serving, calling)
			}
			if p.made++; err != nil {
				p.fault = append(p.fault, fmt.Errorf("%s to %s: %w", b, a, err))
			}
		}
	}
}

// keepConnecting has the peers connect several times a second. The function that it returns ends
// that, and requires that no handshake has failed.
func (p *peers) keepConnecting(t *testing.T) (stop func()) {
	ended, ticker := make(chan struct{}), time.NewTicker(300*time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				p.connect(t)
			}
		}
	}()
	return func() {
		t.Helper()
		cancel()
		<-ended
		ticker.Stop()
		if len(p.fault) > 0 {
			t.Errorf("%d of %d handshakes failed; the first: %v", len(p.fault), p.made, p.fault[0])
		}
		t.Logf("%d handshakes", p.made)
	}
}

// A calicoPod has a certificate that it asked for when it started, and trusts what its caCert held
// then.
type calicoPod struct {
	name      string
	component calico.Component
	pod       testenv.Pod
}

// restart replaces the pod by another one with this caCert, which takes part in the connections as
// soon as it has its certificate.
func (r *rotating) restart(t *testing.T, all *peers, c *calicoPod, by testenv.CA,
	caCert ...testenv.CA) {
	t.Helper()
	former := c.pod
	c.pod = newPod(t, c.component)
	asking := c.pod.InitContainer(c.component)
	asking.SignerName = r.name()
	cert := requireCertificate(t, c.pod, asking)
	requireIssuedBy(t, cert, by)
	pair := tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: asking.Key}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true,
		ClientAuth: tls.RequireAnyClientCert, VerifyConnection: verifyBy(poolOf(t, caCert...))}
	all.set(c.name, func() (*tls.Config, error) { return config, nil })
	if former.Pod != nil {
		must.OK(t, shared.Cluster.Client().CoreV1().Pods(former.Namespace).Delete(t.Context(),
			former.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
	}
}

// verifyBy accepts a peer whose certificate leads to one of these roots by those that it sends, as
// Felix and Typha do (Calico's tlsutils).
func verifyBy(roots *x509.CertPool) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		sent := x509.NewCertPool()
		for _, cert := range state.PeerCertificates[1:] {
			sent.AddCert(cert)
		}
		_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots,
			Intermediates: sent, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		return err
	}
}

// volumePeer is a program that reads its pod's volume for each connection: the certificate and the
// roots that kubelet's own code has for it now.
func (r *rotating) volumePeer(k *kubelet, pod *corev1.Pod,
	bundles clustertrustbundle.Manager) peer {
	return func() (*tls.Config, error) {
		key, chain, err := k.bundle(pod)
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(chain, key)
		if err != nil {
			return nil, err
		}
		text, err := bundles.GetTrustAnchorsBySigner(context.Background(), r.name(),
			&metav1.LabelSelector{}, false)
		roots := x509.NewCertPool()
		if err != nil || !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("the roots: %w", err)
		}
		return &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true,
			ClientAuth: tls.RequireAnyClientCert, VerifyConnection: verifyBy(roots)}, nil
	}
}

// refresh has kubelet replace the certificates of all its pods, by ones of the CA.
func (k *kubelet) refresh(t *testing.T, by testenv.CA, pods ...*corev1.Pod) {
	t.Helper()
	former := map[types.UID][]byte{}
	for _, pod := range pods {
		_, chain, err := k.bundle(pod)
		must.OK(t, err)
		former[pod.UID] = chain
	}
	k.clock.SetTime(time.Now().Add(36 * time.Minute))
	for _, pod := range pods {
		k.TrackPod(t.Context(), pod)
	}
	for _, pod := range pods {
		requireIssuedBy(t, parseCertificate(t, k.requireBundle(t, pod, former[pod.UID])), by)
	}
	k.clock.SetTime(time.Now())
}

// pemOf returns the text of the CAs' certificates.
func pemOf(t *testing.T, cas ...testenv.CA) (text string) {
	t.Helper()
	for _, ca := range cas {
		one, err := os.ReadFile(ca.CertFile)
		must.OK(t, err)
		text += string(one)
	}
	return text
}

// A whole rotation with a step back in each phase, and with another leader in the middle of it: no
// handshake fails, neither of pods with volumes nor of pods like Calico's that read caCert once.
func TestRotation(t *testing.T) {
	r := newRotating(t, "rotation")
	t.Parallel()
	must.OK(t, shared.AllowPods(t.Context()))
	r.allowBundle(t)
	r.env = append(r.env, withPolicy(t, rotationPolicy), "POD_CERTIFICATES=true",
		"TRUST_DOMAIN="+podTrustDomain, "TRUST_BUNDLE_FILE="+ca.CertFile)
	state, bundle := filepath.Join(t.TempDir(), "state"),
		"NEXT_TRUST_BUNDLE_FILE="+r.next.CertFile
	r.env = append(r.env, bundle)
	first := startReady(t, ca, r.both("STATE_DIR="+state)...)
	waitLeads(t, first)
	second := startReady(t, ca, r.both()...)
	all := &peers{all: map[string]peer{}}
	one := &calicoPod{name: "node", component: node}
	other := &calicoPod{name: "typha", component: typha}
	restart := func(by testenv.CA, caCert ...testenv.CA) {
		t.Helper()
		r.restart(t, all, one, by, caCert...)
		r.restart(t, all, other, by, caCert...)
	}
	restart(ca, ca)
	const nodeName = "kubelet-rotation"
	a, b := r.newVolumePod(t, nodeName, "ECDSAP256"), r.newVolumePod(t, nodeName, "ED25519")
	k := startKubelet(t, nodeName, a, b)
	k.requireBundle(t, a, nil)
	k.requireBundle(t, b, nil)
	r.requireBundle(t, pemOf(t, ca))
	bundles := clustertrustbundle.NewLazyInformerManager(t.Context(), shared.Cluster.Client(), 10)
	all.set("volume a", r.volumePeer(k, a, bundles))
	all.set("volume b", r.volumePeer(k, b, bundles))
	r.mountedRoots(t)
	stop := all.keepConnecting(t)

	r.rotate(t, "status").prints(t, 0, "no rotation", "Next CA")
	r.refused(t, []string{"sign"}, "the phase stays none", "the phase trusted")
	r.step(t, "announced", "announce")
	r.requireBundle(t, pemOf(t, ca, r.next))
	r.step(t, "none", "back")
	r.requireBundle(t, pemOf(t, ca))
	r.step(t, "announced", "announce")
	restart(ca, ca, r.next) // caCert holds both now
	r.step(t, "trusted", "trust")
	r.step(t, "announced", "back")
	r.step(t, "trusted", "trust")
	r.refused(t, []string{"sign"}, "each reads caCert once", one.pod.Name, other.pod.Name)
	r.rotate(t, "status").prints(t, 0, "trusted since")
	restart(ca, ca, r.next)
	r.stepLater(t, "signing", "sign")
	r.requireSigns(t, r.next)
	waitMetrics(t, first, `hsm_signer_rotation_phase{phase="signing"} 1`,
		`hsm_signer_live_certificates{file="CA_CERT_FILE"} 4`)
	k.refresh(t, r.next, a, b)
	r.step(t, "trusted", "back")
	r.requireSigns(t, ca)
	k.refresh(t, ca, a, b)
	restart(ca, ca, r.next)
	r.stepLater(t, "signing", "sign")

	must.OK(t, first.Shutdown())
	waitLeads(t, second)
	r.requireSigns(t, r.next)
	r.step(t, "trusted", "back")
	p := r.rotate(t, "sign")
	p.complains(t, 2, "the certificates of other replicas")
	journal := regexp.MustCompile(`--checked ([0-9a-f]{8})`).FindStringSubmatch(p.stderr)
	r.stepLater(t, "signing", "sign", "--checked", journal[1])

	restart(r.next, ca, r.next)
	k.refresh(t, r.next, a, b)
	r.refused(t, []string{"retire"}, "the end of the last certificate of the former CA (until ")
	r.refused(t, []string{"retire", "--force"}, "a reason")
	forced := []string{"retire", "--force", "--reason", "nobody has one any more"}
	r.step(t, "retired", forced...)
	r.requireBundle(t, pemOf(t, r.next))
	r.step(t, "signing", "back")
	r.requireBundle(t, pemOf(t, ca, r.next))
	r.step(t, "retired", forced...)
	r.requireBundle(t, pemOf(t, r.next))
	restart(r.next, r.next)
	k.refresh(t, r.next, a, b)

	must.OK(t, second.Shutdown())
	after := slices.DeleteFunc(slices.Clone(r.env), func(setting string) bool {
		return setting == bundle || strings.HasPrefix(setting, "TRUST_BUNDLE_FILE=")
	})
	after = append(after, "TRUST_BUNDLE_FILE="+r.next.CertFile, "STATE_DIR="+state)
	third := startReady(t, r.next, after...)
	waitLeads(t, third)
	restart(r.next, r.next)
	k.refresh(t, r.next, a, b)
	r.requireBundle(t, pemOf(t, r.next))
	stop()
	requireNoFaults(t, third)
	requireEvent(t, r.name(), "CARotation")
	command(t, r.next, after, "audit", "verify").prints(t, 0)
}

// A replica that lacks a CA of the phase, or cannot read the phase, neither leads nor signs, and says
// what to do. A person confirms a phase that was lost.
func TestReplicaThatDoesNotKnowThePhase(t *testing.T) {
	r := newRotating(t, "rotation-lost")
	t.Parallel()
	state := "STATE_DIR=" + filepath.Join(t.TempDir(), "state")
	d := startReady(t, ca, r.both(state)...)
	waitLeads(t, d)
	r.rotate(t, "restore", "signing", "--reason", "r").complains(t, 2, "leads")
	r.step(t, "announced", "announce")
	r.step(t, "trusted", "trust")
	r.stepLater(t, "signing", "sign")
	r.requireSigns(t, r.next)

	good := pemOf(t, r.next)
	must.OK(t, os.WriteFile(r.next.CertFile, []byte(pemOf(t, ca)), 0o600))
	r.waitStatus(t, d, "REFUSED    NEXT_CA_CERT_FILE in its present form is refused, and the "+
		"certificate before it stays in use: ")
	must.OK(t, os.WriteFile(r.next.CertFile, []byte(good), 0o600))
	r.requireSigns(t, r.next)

	leases := shared.Cluster.Client().CoordinationV1().Leases("hsm-signer")
	must.OK(t, leases.Delete(t.Context(), string(r.ownSigner), metav1.DeleteOptions{}))
	must.Eventually(t, "the phase to be in the lease again", func(ctx context.Context) (bool,
		error) {
		lease, err := leases.Get(ctx, string(r.ownSigner), metav1.GetOptions{})
		return err == nil && strings.Contains(lease.Annotations["hsm-signer/rotation"],
			`"signing"`), nil
	})
	r.annotate(t, `{"phase":"sining"}`)
	must.OK(t, d.WaitNotReady(t.Context(), "[-] rotation: the annotation hsm-signer/rotation of "+
		"the lease"))
	waiting := r.submit(t)
	command(t, ca, r.both(state), "check").prints(t, 2, "rotation of the CA", "ca rotate restore")
	must.OK(t, d.Shutdown())
	requireOpen(t, waiting.Name)

	r.restore(t, "a typo")
	for words, env := range map[string][]string{
		"set NEXT_CA_CERT_FILE to its certificate":              r.env,
		"[-] token: the token has no private key labelled \"no": r.both("NEXT_CA_KEY_LABEL=none"),
	} {
		unfit := start(t, ca, env...)
		must.OK(t, unfit.WaitNotReady(t.Context(), words))
		must.OK(t, unfit.Shutdown())
		requireOpen(t, waiting.Name)
	}

	must.OK(t, leases.Delete(t.Context(), string(r.ownSigner), metav1.DeleteOptions{}))
	again := start(t, ca, r.both(state)...)
	must.OK(t, again.WaitNotReady(t.Context(), "the journal says that a rotation of the CA is in "+
		"the phase signing"))
	requireOpen(t, waiting.Name)
	r.rotate(t, "sign").complains(t, 1, "not found")
	r.restore(t, "the lease was deleted")
	must.OK(t, again.WaitReady(t.Context()))
	csr, err := calico.Wait(t.Context(), shared.Cluster.Client(), waiting.Name)
	must.OK(t, err)
	requireIssuedBy(t, parseCertificate(t, csr.Status.Certificate), r.next)
	requireCheck(t, r.both(state), 0, "rotation of the CA", "signing since",
		"certificates in use")
}

// waitStatus waits until the status that is printed next to the daemon has the text.
func (r *rotating) waitStatus(t *testing.T, d *testenv.Daemon, text string) {
	t.Helper()
	must.Eventually(t, text, func(context.Context) (bool, error) {
		p := command(t, r.former, r.both("LISTEN_ADDRESS="+d.Address()), "ca", "rotate", "status")
		return strings.Contains(p.stdout, text), nil
	})
}

// restore confirms the phase signing, as soon as nobody counts as the leader any more.
func (r *rotating) restore(t *testing.T, reason string) {
	t.Helper()
	must.Eventually(t, "the leader to be forgotten", func(context.Context) (bool, error) {
		p := r.rotate(t, "restore", "signing", "--reason", reason)
		return p.code == 0 && strings.Contains(p.stdout, "signing since"), nil
	})
}

// annotate writes the state of the rotation as somebody else would.
func (r *rotating) annotate(t *testing.T, state string) {
	t.Helper()
	_, err := shared.Cluster.Client().CoordinationV1().Leases("hsm-signer").Patch(t.Context(),
		string(r.ownSigner), types.MergePatchType, fmt.Appendf(nil,
			`{"metadata":{"annotations":{"hsm-signer/rotation":%q}}}`, state),
		metav1.PatchOptions{})
	must.OK(t, err)
}
