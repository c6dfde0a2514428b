//lint:file-ignore SA1019 kubelets before 1.36 put their key only into these fields

package e2e

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"hsm-signer/integration/must"
	"hsm-signer/policy/pkcs10"
)

// serveV1beta1 has the API server serve the version in which kubelets before 1.36 write their keys.
const serveV1beta1 = "--runtime-config=certificates.k8s.io/v1beta1/podcertificaterequests=true"

// earlierRequest is what kubelet before 1.36 asks for the pod, with the key instead of a stub. The
// proof signs the UID that the request names.
func (s ownSigner) earlierRequest(t *testing.T, pod *corev1.Pod, kind pkcs10.KeyType) (
	*certificatesv1beta1.PodCertificateRequest, crypto.Signer) {
	t.Helper()
	pcr, private := s.podRequest(t, pod, kind)
	key := must.Get(x509.MarshalPKIXPublicKey(private.Public()))(t)
	return &certificatesv1beta1.PodCertificateRequest{ObjectMeta: pcr.ObjectMeta,
		Spec: certificatesv1beta1.PodCertificateRequestSpec{
			SignerName: pcr.Spec.SignerName, PodName: pcr.Spec.PodName, PodUID: pcr.Spec.PodUID,
			ServiceAccountName: pcr.Spec.ServiceAccountName,
			ServiceAccountUID:  pcr.Spec.ServiceAccountUID, NodeName: pcr.Spec.NodeName,
			NodeUID: pcr.Spec.NodeUID, MaxExpirationSeconds: pcr.Spec.MaxExpirationSeconds,
			PKIXPublicKey: key, ProofOfPossession: proofOf(t, private, pod.UID),
		}}, private
}

// proofOf signs the UID as the API demands of each type of key.
func proofOf(t *testing.T, private crypto.Signer, uid types.UID) []byte {
	t.Helper()
	digest := sha256.Sum256([]byte(uid))
	message, options := digest[:], crypto.SignerOpts(crypto.SHA256)
	switch private.(type) {
	case ed25519.PrivateKey:
		message, options = []byte(uid), crypto.Hash(0)
	case *rsa.PrivateKey:
		options = &rsa.PSSOptions{Hash: crypto.SHA256}
	}
	return must.Get(private.Sign(rand.Reader, message, options))(t)
}

// createEarlier creates the request and returns it as v1 shows it.
func createEarlier(t *testing.T,
	pcr *certificatesv1beta1.PodCertificateRequest) *certificatesv1.PodCertificateRequest {
	t.Helper()
	made := must.Get(shared.Cluster.Client().CertificatesV1beta1().PodCertificateRequests(
		pcr.Namespace).Create(t.Context(), pcr, metav1.CreateOptions{}))(t)
	return readPodRequest(t, &certificatesv1.PodCertificateRequest{ObjectMeta: made.ObjectMeta})
}

// Where the API server has v1beta1, pods on nodes with earlier kubelets get certificates. When it
// has it no more, such a request shows no key, and is left open.
func TestKeysOfEarlierKubelets(t *testing.T) {
	must.OK(t, shared.Cluster.RestartAPIServer(context.Background(), serveV1beta1))
	t.Cleanup(func() { must.OK(t, shared.Cluster.RestartAPIServer(context.Background())) })
	s, d := newPodSigner(t, "pods-v1beta1")
	for _, kind := range []pkcs10.KeyType{pkcs10.RSA3072, pkcs10.RSA4096, pkcs10.ECDSAP256,
		pkcs10.ECDSAP384, pkcs10.ECDSAP521, pkcs10.Ed25519} {
		earlier, private := s.earlierRequest(t, newPlainPod(t), kind)
		pcr, _ := awaitAnswer(t, createEarlier(t, earlier))
		requirePodCertificate(t, pcr, private)
	}
	s.requireIssued(t)
	open := s.forgeEarlierRequests(t)
	waitLog(t, d, open.Name)
	must.OK(t, shared.Cluster.RestartAPIServer(context.Background()))
	waitLog(t, d, "it shows no key")
	s.requireIssued(t)
	requirePodRequestsOpen(t, open)
}

// requireIssued requires that a request with a stub is issued.
func (s ownSigner) requireIssued(t *testing.T) {
	t.Helper()
	pcr, private := s.podRequest(t, newPlainPod(t), pkcs10.ECDSAP256)
	pcr, _ = answer(t, pcr)
	requirePodCertificate(t, pcr, private)
}

// forgeEarlierRequests checks the answers to wrong requests of v1beta1. It returns the one that
// stays open.
func (s ownSigner) forgeEarlierRequests(t *testing.T) (open *certificatesv1.PodCertificateRequest) {
	t.Helper()
	const refusedByServer = "refused by the API server"
	type spec = certificatesv1beta1.PodCertificateRequestSpec
	other := newPlainPod(t)
	for name, c := range map[string]struct {
		forge func(*spec, crypto.Signer)
		want  string // reason of the denial; empty: it stays open
	}{
		"another account": {func(s *spec, _ crypto.Signer) {
			s.ServiceAccountName = other.Spec.ServiceAccountName
		}, "PodNotVerified"},
		"an annotation": {func(s *spec, _ crypto.Signer) {
			s.UnverifiedUserAnnotations = map[string]string{"example.com/san": "kubernetes"}
		}, certificatesv1.PodCertificateRequestConditionInvalidUserConfig},
		"another UID of the pod": {func(s *spec, key crypto.Signer) {
			s.PodUID, s.ProofOfPossession = "other", proofOf(t, key, "other")
		}, ""},
		"the proof of another pod": {func(s *spec, key crypto.Signer) {
			s.ProofOfPossession = proofOf(t, key, other.UID)
		}, refusedByServer},
		"a stub too": {func(s *spec, key crypto.Signer) {
			s.StubPKCS10Request = pkcs10Of(t, key, x509.CertificateRequest{})
		}, refusedByServer},
	} {
		earlier, private := s.earlierRequest(t, newPlainPod(t), pkcs10.ECDSAP256)
		c.forge(&earlier.Spec, private)
		switch c.want {
		case "":
			open = createEarlier(t, earlier)
		case refusedByServer:
			_, err := shared.Cluster.Client().CertificatesV1beta1().PodCertificateRequests(
				earlier.Namespace).Create(t.Context(), earlier, metav1.CreateOptions{})
			if !apierrors.IsInvalid(err) {
				t.Errorf("%s: %v", name, err)
			}
		default:
			pcr, condition := awaitAnswer(t, createEarlier(t, earlier))
			if condition.Type != certificatesv1.PodCertificateRequestConditionTypeDenied ||
				condition.Reason != c.want || pcr.Status.CertificateChain != "" {
				t.Errorf("%s: %+v", name, condition)
			}
		}
	}
	return open
}
