package bench

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/integration/must"
)

// limitWorkers is the number of requests that the loop has in work. With more it is hardly faster,
// and slows down those who create requests instead: profiles.md.
const limitWorkers = 32

// A softLoop answers requests with the least that an answer takes: it parses the request, signs
// with a key in memory, and writes the status. It checks nothing and records nothing.
type softLoop struct {
	client  kubernetes.Interface
	ca      *x509.Certificate
	key     crypto.Signer
	kind    kind   // of requests
	signer  string // name
	readPod bool   // reads the pod of a CSR consistently, as a policy with live pods needs
	approve bool   // writes the approval of a CSR first
}

// newSoftLoop returns a bare loop for CSRs with a new P-256 key.
func newSoftLoop(b *testing.B, client kubernetes.Interface, signer string) *softLoop {
	b.Helper()
	key := must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(b)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "limit"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must.Get(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(b)
	ca := must.Get(x509.ParseCertificate(der))(b)
	return &softLoop{client: client, ca: ca, key: key, kind: csrs, signer: signer}
}

// run lists the requests, calls listed, watches from there, and answers until the context ends. An
// answer that fails ends the run.
func (l *softLoop) run(ctx context.Context, listed func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	requests := l.kind.of(l.client, l.signer)
	todo := make(chan object, 100_000)
	version, err := list(ctx, requests, func(r object) { todo <- r })
	if err != nil {
		return err
	}
	for range limitWorkers {
		go func() {
			for request := range todo {
				if err := l.answer(ctx, request); err != nil {
					cancel(err)
				}
			}
		}()
	}
	defer close(todo)
	listed()
	err = follow(ctx, requests, version, func(event request) bool {
		if event.change == watch.Added {
			todo <- event.object
		}
		return true
	})
	return cmp.Or(context.Cause(ctx), err)
}

// answer answers a request of either kind.
func (l *softLoop) answer(ctx context.Context, r object) error {
	if pcr, is := r.(*certificatesv1.PodCertificateRequest); is {
		return l.answerPod(ctx, pcr)
	}
	return l.answerCSR(ctx, r.(*certificatesv1.CertificateSigningRequest))
}

// answerCSR approves the request, if the loop does that, and issues its certificate.
func (l *softLoop) answerCSR(ctx context.Context,
	request *certificatesv1.CertificateSigningRequest) (err error) {
	if l.readPod {
		pod := request.Spec.Extra["authentication.kubernetes.io/pod-name"][0]
		if _, err := l.client.CoreV1().Pods(node().Namespace).Get(ctx, pod,
			metav1.GetOptions{}); err != nil {
			return err
		}
	}
	requests := l.client.CertificatesV1().CertificateSigningRequests()
	if l.approve {
		request.Status.Conditions = append(request.Status.Conditions, approved())
		if request, err = requests.UpdateApproval(ctx, request.Name, request,
			metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	block, _ := pem.Decode(request.Spec.Request)
	if block == nil {
		return fmt.Errorf("no PEM: %q", request.Spec.Request)
	}
	if request.Status.Certificate, err = l.sign(block.Bytes, time.Now()); err != nil {
		return err
	}
	_, err = requests.UpdateStatus(ctx, request, metav1.UpdateOptions{})
	return err
}

// answerPod reads the pod, its service account and its node consistently, as hsm-signer does to
// verify a request, and issues the certificate.
func (l *softLoop) answerPod(ctx context.Context, r *certificatesv1.PodCertificateRequest) error {
	core := l.client.CoreV1()
	_, err := core.Pods(r.Namespace).Get(ctx, r.Spec.PodName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	_, err = core.ServiceAccounts(r.Namespace).Get(ctx, r.Spec.ServiceAccountName,
		metav1.GetOptions{})
	if err != nil {
		return err
	}
	_, err = core.Nodes().Get(ctx, string(r.Spec.NodeName), metav1.GetOptions{})
	if err != nil {
		return err
	}
	now := metav1.Now().Rfc3339Copy() // a certificate has whole seconds
	chain, err := l.sign(r.Spec.StubPKCS10Request, now.Time)
	if err != nil {
		return err
	}
	r.Status = certificatesv1.PodCertificateRequestStatus{
		Conditions: []metav1.Condition{{
			Type:   certificatesv1.PodCertificateRequestConditionTypeIssued,
			Status: metav1.ConditionTrue, Reason: "Benchmark", LastTransitionTime: now,
		}},
		CertificateChain: string(chain), NotBefore: &now,
		NotAfter:       &metav1.Time{Time: now.Add(lifetime)},
		BeginRefreshAt: &metav1.Time{Time: now.Add(lifetime / 2)},
	}
	requests := l.client.CertificatesV1().PodCertificateRequests(r.Namespace)
	_, err = requests.UpdateStatus(ctx, r, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) { // the cleaner was faster
		return nil
	}
	return err
}

// approved is the condition of an approved request.
func approved() certificatesv1.CertificateSigningRequestCondition {
	return certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue,
		Reason: "Benchmark", Message: "approved by the benchmark",
	}
}

// lifetime is that of the loop's certificates.
const lifetime = time.Hour

// sign returns a certificate in PEM for the PKCS#10 request in DER, valid from then on.
func (l *softLoop) sign(pkcs10 []byte, notBefore time.Time) ([]byte, error) {
	request, err := x509.ParseCertificateRequest(pkcs10)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: request.Subject, DNSNames: request.DNSNames,
		IPAddresses: request.IPAddresses, NotBefore: notBefore,
		NotAfter: notBefore.Add(lifetime), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{
			x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth,
		},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, l.ca, request.PublicKey, l.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
