package e2e

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// Calico's open-source components, and the two that most tests use.
var (
	components  = calico.OpenSource("cluster.local")
	node, typha = components[0], components[1]
)

// newPod creates a running pod of the component.
func newPod(t *testing.T, c calico.Component) testenv.Pod {
	t.Helper()
	return must.Get(shared.NewPod(t.Context(), c, shared.NextIP()))(t)
}

// newPendingPod creates a pod of the component that has no address.
func newPendingPod(t *testing.T, c calico.Component) testenv.Pod {
	t.Helper()
	return must.Get(shared.NewPod(t.Context(), c))(t)
}

// newRequester creates a running pod of the component, with an init container that requests the
// component's certificate.
func newRequester(t *testing.T, c calico.Component) (testenv.Pod, calico.InitContainer) {
	t.Helper()
	p := newPod(t, c)
	return p, p.InitContainer(c)
}

// submit creates the request of the init container.
func submit(t *testing.T, p testenv.Pod,
	asking calico.InitContainer) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	return must.Get(asking.Submit(t.Context(), p.Client))(t)
}

// refusal creates the request as the pod, and returns how it was refused.
func refusal(t *testing.T, p testenv.Pod, csr *certificatesv1.CertificateSigningRequest) error {
	t.Helper()
	must.Get(p.Requests().Create(t.Context(), csr, metav1.CreateOptions{}))(t)
	_, err := calico.Wait(t.Context(), p.Client, csr.Name)
	return err
}

// requireAnswered waits until the submitted request has its certificate, and checks it.
func requireAnswered(t *testing.T, p testenv.Pod, asking calico.InitContainer) *x509.Certificate {
	t.Helper()
	return requireIssued(t, must.Get(calico.Wait(t.Context(), p.Client, asking.Name()))(t), asking)
}

// requireCertificate has the pod request its certificate and checks it.
func requireCertificate(t *testing.T, p testenv.Pod,
	asking calico.InitContainer) *x509.Certificate {
	t.Helper()
	submit(t, p, asking)
	return requireAnswered(t, p, asking)
}

// requireIssues requires that a new pod gets its certificate.
func requireIssues(t *testing.T) *x509.Certificate {
	t.Helper()
	p, asking := newRequester(t, node)
	return requireCertificate(t, p, asking)
}

// requireIssued checks the certificate.
func requireIssued(t *testing.T, csr *certificatesv1.CertificateSigningRequest,
	asking calico.InitContainer) *x509.Certificate {
	t.Helper()
	if _, rest := pem.Decode(csr.Status.Certificate); len(rest) > 0 {
		t.Fatalf("the certificate of %s is not one PEM block", csr.Name)
	}
	cert := parseCertificate(t, csr.Status.Certificate)
	requireKey(t, csr.Name, cert, asking.Key)
	if !slices.Equal(cert.DNSNames, asking.DNSNames) || len(cert.IPAddresses) != 1 ||
		cert.IPAddresses[0].String() != asking.Pod.Status.PodIP {
		t.Errorf("%s: certified are %v and %v", csr.Name, cert.DNSNames, cert.IPAddresses)
	}
	if cert.Subject.String() != "CN="+asking.DNSNames[0] {
		t.Errorf("%s: the subject is %s", csr.Name, cert.Subject)
	}
	return cert
}

// parseCertificate parses the first PEM block of the text.
func parseCertificate(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("not PEM: %q", text)
	}
	return must.Get(x509.ParseCertificate(block.Bytes))(t)
}

func requireKey(t *testing.T, request string, cert *x509.Certificate, key crypto.Signer) {
	t.Helper()
	public, is := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !is || !public.Equal(cert.PublicKey) {
		t.Errorf("%s: the certificate is for another key", request)
	}
}

// certificateOf returns the certificate of the CA.
func certificateOf(t *testing.T, ca testenv.CA) *x509.Certificate {
	t.Helper()
	return parseCertificate(t, must.Get(os.ReadFile(ca.CertFile))(t))
}

// requireOpenSSL verifies the chain with openssl.
func requireOpenSSL(t *testing.T, ca testenv.CA, cert *x509.Certificate) {
	t.Helper()
	file := tempFile(t, "tls.crt",
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
	out, err := exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-purpose",
		"sslserver", "-CAfile", ca.CertFile, file).CombinedOutput()
	if err != nil {
		t.Errorf("openssl verify: %v: %s", err, out)
	}
}

func requireRefused(t *testing.T, err error, kind certificatesv1.RequestConditionType, reason,
	words string) {
	t.Helper()
	var refused *calico.Refused
	if !errors.As(err, &refused) {
		t.Fatalf("not refused: %v", err)
	}
	if c := refused.Condition; c.Type != kind || c.Reason != reason ||
		!strings.Contains(c.Message, words) {
		t.Errorf("%s, reason %s: %s; want %s, %s and %q", c.Type, c.Reason, c.Message, kind, reason,
			words)
	}
}

// get returns the request as it is now.
func get(t *testing.T, name string) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	return must.Get(shared.Cluster.Requests().Get(t.Context(), name, metav1.GetOptions{}))(t)
}

// requireOpen requires that the request has neither an approval nor an answer.
func requireOpen(t *testing.T, name string) {
	t.Helper()
	now := get(t, name)
	if len(now.Status.Conditions) > 0 || len(now.Status.Certificate) > 0 {
		t.Errorf("%s was decided: %v", name, now.Status)
	}
}

// requireUntouched requires that nobody has written to the request since it was made.
func requireUntouched(t *testing.T, made metav1.Object) {
	t.Helper()
	now := get(t, made.GetName())
	if now.UID != made.GetUID() || now.ResourceVersion != made.GetResourceVersion() {
		t.Errorf("the request %s of %s was touched: %v", now.Name, now.Spec.Username, now.Status)
	}
}

// decide adds a condition to a request, with the rights of the client.
func decide(t *testing.T, client kubernetes.Interface, name string,
	c certificatesv1.CertificateSigningRequestCondition,
) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	csr := get(t, name)
	c.Status, c.Reason = corev1.ConditionTrue, "DecidedByTest"
	csr.Status.Conditions = append(csr.Status.Conditions, c)
	return must.Get(client.CertificatesV1().CertificateSigningRequests().UpdateApproval(t.Context(),
		name, csr, metav1.UpdateOptions{}))(t)
}

// approve approves a request, with the rights of the client.
func approve(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	decide(t, client, name, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved})
}

// eventsOn returns the events on a request, or on a signer.
func eventsOn(t *testing.T, name string) []corev1.Event {
	t.Helper()
	events := must.Get(shared.Cluster.Client().CoreV1().Events("default").List(t.Context(),
		metav1.ListOptions{FieldSelector: "involvedObject.name=" + name}))(t)
	return events.Items
}

func requireEvent(t *testing.T, name, reason string) {
	t.Helper()
	must.Eventually(t, "an event "+reason+" on "+name, func(context.Context) (bool, error) {
		return slices.ContainsFunc(eventsOn(t, name),
			func(e corev1.Event) bool { return e.Reason == reason }), nil
	})
}
