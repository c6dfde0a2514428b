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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/integration/must"
)

// limitWorkers is the number of requests that the loop has in work: hsm-signer's default.
const limitWorkers = 32

// A softLoop answers requests with the least that an answer takes: it parses the request, signs
// with a key in memory, and writes the status. It checks nothing and records nothing.
type softLoop struct {
	client  kubernetes.Interface
	ca      *x509.Certificate
	key     crypto.Signer
	signer  string // name
	readPod bool   // reads the requester's pod consistently, as a policy with live pods needs
	approve bool   // writes the approval first
}

// newSoftLoop returns a bare loop with a new P-256 key.
func newSoftLoop(b *testing.B, client kubernetes.Interface, signer string) *softLoop {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.OK(b, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "limit"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must.OK(b, err)
	ca, err := x509.ParseCertificate(der)
	must.OK(b, err)
	return &softLoop{client: client, ca: ca, key: key, signer: signer}
}

// run lists the requests, calls listed, watches from there, and answers until the context ends. An
// answer that fails ends the run.
func (l *softLoop) run(ctx context.Context, listed func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	requests := l.client.CertificatesV1().CertificateSigningRequests()
	list, err := requests.List(ctx, metav1.ListOptions{
		FieldSelector: "spec.signerName=" + l.signer,
	})
	if err != nil {
		return err
	}
	todo := make(chan *certificatesv1.CertificateSigningRequest, 100_000)
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
	for i := range list.Items {
		todo <- &list.Items[i]
	}
	err = follow(ctx, requests, l.signer, list.ResourceVersion, func(event request) bool {
		if event.added {
			todo <- event.CertificateSigningRequest
		}
		return true
	})
	return cmp.Or(context.Cause(ctx), err)
}

// answer approves the request, if the loop does that, and issues its certificate.
func (l *softLoop) answer(ctx context.Context,
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
	if request.Status.Certificate, err = l.sign(request.Spec.Request); err != nil {
		return err
	}
	_, err = requests.UpdateStatus(ctx, request, metav1.UpdateOptions{})
	return err
}

// approved is the condition of an approved request.
func approved() certificatesv1.CertificateSigningRequestCondition {
	return certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue,
		Reason: "Benchmark", Message: "approved by the benchmark",
	}
}

// sign returns a certificate in PEM for the PKCS#10 request in PEM.
func (l *softLoop) sign(text []byte) ([]byte, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("no PEM: %q", text)
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: request.Subject, DNSNames: request.DNSNames,
		IPAddresses: request.IPAddresses, NotBefore: time.Now(),
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
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
