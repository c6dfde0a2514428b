package e2e

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
	"hsm-signer/policy/pkcs10"
)

// podTrustDomain is that of the tests.
const podTrustDomain = "example.org"

// newPodSigner starts a signer of pod certificates with a name of its own.
func newPodSigner(t *testing.T, name string, more ...string) (ownSigner, *testenv.Daemon) {
	t.Helper()
	must.OK(t, shared.AllowPods(t.Context()))
	s := newOwnSigner(t, name)
	return s, startReady(t, ca, s.podEnv(more...)...)
}

// podEnv is the configuration of a signer of pod certificates.
func (s ownSigner) podEnv(more ...string) []string {
	return s.env(append([]string{"POD_CERTIFICATES=true", "POLICY_FILE=pods",
		"TRUST_DOMAIN=" + podTrustDomain}, more...)...)
}

// newPlainPod makes a pod of its own service account, without containers that run.
func newPlainPod(t *testing.T) *corev1.Pod {
	t.Helper()
	name := fmt.Sprintf("plain-%d", numbers.Add(1))
	return must.Get(shared.Cluster.Pod(t.Context(), testenv.PodSpec{Namespace: "pods", Name: name,
		ServiceAccount: name}))(t)
}

// podRequest is what kubelet asks for the pod with a new key, which it returns.
func (s ownSigner) podRequest(t *testing.T, pod *corev1.Pod, key pkcs10.KeyType) (
	*certificatesv1.PodCertificateRequest, crypto.Signer) {
	t.Helper()
	private := must.Get(key.Generate())(t)
	pcr := must.Get(shared.Cluster.PodCertificateRequest(t.Context(), s.name(), pod,
		pkcs10Of(t, private, x509.CertificateRequest{})))(t)
	return pcr, private
}

func pkcs10Of(t *testing.T, key crypto.Signer, template x509.CertificateRequest) []byte {
	t.Helper()
	return must.Get(x509.CreateCertificateRequest(rand.Reader, &template, key))(t)
}

func createPodRequest(t *testing.T,
	pcr *certificatesv1.PodCertificateRequest) *certificatesv1.PodCertificateRequest {
	t.Helper()
	return must.Get(shared.Cluster.Client().CertificatesV1().
		PodCertificateRequests(pcr.Namespace).Create(t.Context(), pcr, metav1.CreateOptions{}))(t)
}

func readPodRequest(t *testing.T,
	pcr *certificatesv1.PodCertificateRequest) *certificatesv1.PodCertificateRequest {
	t.Helper()
	return must.Get(shared.Cluster.Client().CertificatesV1().
		PodCertificateRequests(pcr.Namespace).Get(t.Context(), pcr.Name, metav1.GetOptions{}))(t)
}

// requirePodRequestsOpen requires that none of the requests has an answer.
func requirePodRequestsOpen(t *testing.T, requests ...*certificatesv1.PodCertificateRequest) {
	t.Helper()
	for _, pcr := range requests {
		if now := readPodRequest(t, pcr); len(now.Status.Conditions) > 0 {
			t.Errorf("%s: %+v", now.Name, now.Status.Conditions)
		}
	}
}

// answer creates the request and returns it with its answer.
func answer(t *testing.T, pcr *certificatesv1.PodCertificateRequest) (
	*certificatesv1.PodCertificateRequest, metav1.Condition) {
	t.Helper()
	return awaitAnswer(t, createPodRequest(t, pcr))
}

// awaitAnswer returns the request with its answer.
func awaitAnswer(t *testing.T, pcr *certificatesv1.PodCertificateRequest) (
	*certificatesv1.PodCertificateRequest, metav1.Condition) {
	t.Helper()
	must.Eventually(t, "an answer to "+pcr.Name, func(context.Context) (bool, error) {
		pcr = readPodRequest(t, pcr)
		return len(pcr.Status.Conditions) > 0, nil
	})
	return pcr, pcr.Status.Conditions[0]
}

// requirePodCertificate checks what was issued to a pod.
func requirePodCertificate(t *testing.T, pcr *certificatesv1.PodCertificateRequest,
	key crypto.Signer) *x509.Certificate {
	t.Helper()
	if pcr.Status.CertificateChain == "" {
		t.Fatalf("%s has no certificate: %+v", pcr.Name, pcr.Status.Conditions)
	}
	leaf := parseCertificate(t, []byte(pcr.Status.CertificateChain))
	id := fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", podTrustDomain, pcr.Namespace,
		pcr.Spec.ServiceAccountName)
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id || len(leaf.DNSNames)+
		len(leaf.IPAddresses)+len(leaf.EmailAddresses)+len(leaf.Subject.Names) > 0 {
		t.Errorf("%s: certified are %v, %v and %s", pcr.Name, leaf.URIs, leaf.DNSNames,
			leaf.Subject)
	}
	requireKey(t, pcr.Name, leaf, key)
	if lifetime := leaf.NotAfter.Sub(leaf.NotBefore); lifetime != time.Hour ||
		!pcr.Status.BeginRefreshAt.Time.Equal(leaf.NotBefore.Add(lifetime/2)) {
		t.Errorf("%s: valid for %s, refreshed at %s", pcr.Name, lifetime,
			pcr.Status.BeginRefreshAt)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificateOf(t, ca))
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots}); err != nil {
		t.Errorf("%s: %v", pcr.Name, err)
	}
	return leaf
}

// A pod gets its SPIFFE ID, and nothing else, for each type of key that the API has.
func TestPodCertificates(t *testing.T) {
	t.Parallel()
	s, d := newPodSigner(t, "pods-keys")
	for _, key := range []pkcs10.KeyType{pkcs10.RSA3072, pkcs10.RSA4096, pkcs10.ECDSAP256,
		pkcs10.ECDSAP384, pkcs10.ECDSAP521, pkcs10.Ed25519} {
		pcr, private := s.podRequest(t, newPlainPod(t), key)
		pcr, condition := answer(t, pcr)
		if condition.Type != certificatesv1.PodCertificateRequestConditionTypeIssued {
			t.Fatalf("%s: %+v", key, condition)
		}
		requirePodCertificate(t, pcr, private)
	}
	requireNeverNamed(t, d, "certificatesigningrequest")
}

// What a request says is compared with the live objects. It is denied only for what no lag
// explains, and otherwise left open: kubelet never asks again after a denial. Nothing forged is
// certified.
func TestForgedPodRequests(t *testing.T) {
	t.Parallel()
	s, d := newPodSigner(t, "pods-forged")
	other := newPlainPod(t)
	mirror := newMirrorPod(t)
	type spec = certificatesv1.PodCertificateRequestSpec
	ecdsa := func(template x509.CertificateRequest) []byte {
		key := must.Get(pkcs10.ECDSAP256.Generate())(t)
		return pkcs10Of(t, key, template)
	}
	var open []*certificatesv1.PodCertificateRequest
	for name, c := range map[string]struct {
		forge func(*spec)
		want  string // reason of the denial; empty: it stays open
	}{
		"a pod that does not exist": {func(s *spec) { s.PodName = "none" }, ""},
		"another pod's name":        {func(s *spec) { s.PodName = other.Name }, ""},
		"another UID of the pod":    {func(s *spec) { s.PodUID = "other" }, ""},
		"another account": {func(s *spec) { s.ServiceAccountName = other.Spec.ServiceAccountName },
			"PodNotVerified"},
		"another UID of the account": {func(s *spec) { s.ServiceAccountUID = "other" }, ""},
		"another node":               {func(s *spec) { s.NodeName = "other" }, "PodNotVerified"},
		"another UID of the node":    {func(s *spec) { s.NodeUID = "other" }, ""},
		"a mirror": {func(s *spec) { s.PodName, s.PodUID = mirror.Name, mirror.UID },
			"PodNotVerified"},
		"an annotation": {func(s *spec) {
			s.UnverifiedUserAnnotations = map[string]string{"example.com/san": "kubernetes"}
		}, certificatesv1.PodCertificateRequestConditionInvalidUserConfig},
		"a stub with a name": {func(s *spec) {
			s.StubPKCS10Request = ecdsa(x509.CertificateRequest{DNSNames: []string{"kubernetes"}})
		}, "InvalidRequest"},
		"a stub with a subject": {func(s *spec) {
			template := x509.CertificateRequest{}
			template.Subject.CommonName = "system:admin"
			s.StubPKCS10Request = ecdsa(template)
		}, "InvalidRequest"},
	} {
		pod := newPlainPod(t)
		if name == "a mirror" {
			pod = mirror
		}
		pcr, _ := s.podRequest(t, pod, pkcs10.ECDSAP256)
		if c.forge(&pcr.Spec); c.want == "" {
			open = append(open, createPodRequest(t, pcr))
			continue
		}
		pcr, condition := answer(t, pcr)
		if condition.Type != certificatesv1.PodCertificateRequestConditionTypeDenied ||
			condition.Reason != c.want || pcr.Status.CertificateChain != "" {
			t.Errorf("%s: %+v", name, condition)
		}
	}
	for _, pcr := range open {
		waitLog(t, d, pcr.Name)
	}
	// Each is checked again while this one is issued.
	pcr, key := s.podRequest(t, newPlainPod(t), pkcs10.ECDSAP256)
	pcr, _ = answer(t, pcr)
	requirePodCertificate(t, pcr, key)
	requirePodRequestsOpen(t, open...)
}

// newMirrorPod makes a pod as kubelet makes it for a static pod.
func newMirrorPod(t *testing.T) *corev1.Pod {
	t.Helper()
	pod := newPlainPod(t)
	pods := shared.Cluster.Client().CoreV1().Pods(pod.Namespace)
	must.OK(t, shared.Cluster.DeletePod(t.Context(), pod))
	mirror := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: pod.Name + "-mirror",
		Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "1"}}, Spec: pod.Spec}
	return must.Get(pods.Create(t.Context(), mirror, metav1.CreateOptions{}))(t)
}

// A rule can give pods the names of the Services that select them. Which do is read from the API
// server: a Service of another selector, and one in another namespace, give nothing.
func TestNamesOfServices(t *testing.T) {
	t.Parallel()
	const account = "served"
	s, d := newPodSigner(t, "pods-services", withPolicy(t, strings.Replace(
		rulesFor("pods/"+account), "    grant:\n", "    grant:\n      podNames: [services, hostname]\n",
		1)))
	pod := newServedPod(t, account)
	newService(t, "pods", "web", map[string]string{"app": account}, "")
	newService(t, "pods", "sets", map[string]string{"app": account}, corev1.ClusterIPNone)
	newService(t, "pods", "other", map[string]string{"app": "other"}, "")
	newService(t, "pods", "unselected", nil, "")
	newService(t, "default", "elsewhere", map[string]string{"app": account}, "")
	pcr, _ := s.podRequest(t, pod, pkcs10.ECDSAP256)
	pcr, condition := answer(t, pcr)
	if pcr.Status.CertificateChain == "" {
		t.Fatalf("%+v\n%s", condition, d.Log())
	}
	leaf := parseCertificate(t, []byte(pcr.Status.CertificateChain))
	own := pod.Spec.Hostname + ".sets.pods.svc"
	want := []string{"web.pods.svc", "web.pods.svc.cluster.local", "sets.pods.svc",
		"sets.pods.svc.cluster.local", own, own + ".cluster.local"}
	slices.Sort(want)
	if slices.Sort(leaf.DNSNames); !slices.Equal(leaf.DNSNames, want) || len(leaf.URIs) != 1 {
		t.Errorf("certified are %q and %v; want %q", leaf.DNSNames, leaf.URIs, want)
	}
}

// newServedPod makes a pod with a label and a name below the Service "sets".
func newServedPod(t *testing.T, account string) *corev1.Pod {
	t.Helper()
	pod := must.Get(shared.Cluster.Pod(t.Context(), testenv.PodSpec{Namespace: "pods",
		Name: account + "-empty", ServiceAccount: account}))(t)
	pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: account + "-0",
		Labels: map[string]string{"app": account}}, Spec: pod.Spec}
	pod.Spec.Hostname, pod.Spec.Subdomain = account+"-0", "sets"
	return must.Get(shared.Cluster.Client().CoreV1().Pods("pods").Create(t.Context(), pod,
		metav1.CreateOptions{}))(t)
}

func newService(t *testing.T, namespace, name string, selector map[string]string, ip string) {
	t.Helper()
	must.Get(shared.Cluster.Client().CoreV1().Services(namespace).Create(t.Context(),
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.ServiceSpec{Selector: selector, ClusterIP: ip,
				Ports: []corev1.ServicePort{{Port: 443}}}}, metav1.CreateOptions{}))(t)
}
