package calico_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os/exec"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
)

func typha(t *testing.T, keyAlgorithm, signatureAlgorithm string) calico.InitContainer {
	t.Helper()
	key := must.Get(calico.NewKey(keyAlgorithm))(t)
	return calico.InitContainer{
		Component: calico.OpenSource("cluster.local")[1],
		Pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "calico-typha-0"},
			Status: corev1.PodStatus{PodIP: "10.0.0.7"}},
		SignerName:         "example.com/calico",
		Key:                key,
		SignatureAlgorithm: signatureAlgorithm,
	}
}

func TestRequestIsCalicos(t *testing.T) {
	request := must.Get(typha(t, "ECDSAWithCurve256", "ECDSAWithSHA256").Object())(t)
	if request.Name != "typha-certs:calico-typha-0" {
		t.Errorf("name is %q", request.Name)
	}
	openssl := exec.Command("openssl", "req", "-noout", "-text", "-verify")
	openssl.Stdin = strings.NewReader(string(request.Spec.Request))
	output, err := openssl.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v\n%s", err, output)
	}
	text := strings.Join(strings.Fields(string(output)), " ")
	for _, want := range []string{
		"Subject: C = US, ST = California, L = San Francisco, O = Tigera, OU = Engineering, CN = " +
			"typha-server ",
		"X509v3 Subject Alternative Name: DNS:typha-server, IP Address:10.0.0.7 " +
			"X509v3 Basic Constraints: critical CA:FALSE " +
			"X509v3 Key Usage: critical Digital Signature, Key Encipherment, Key Agreement " +
			"X509v3 Extended Key Usage: TLS Web Server Authentication, TLS Web Client " +
			"Authentication ",
	} {
		// Versions of openssl differ in the spaces around the equals sign.
		if !strings.Contains(strings.ReplaceAll(text, " = ", "="),
			strings.ReplaceAll(want, " = ", "=")) {
			t.Errorf("request lacks %q:\n%s", want, output)
		}
	}
}

func TestEveryMatchingPairOfAlgorithms(t *testing.T) {
	for _, keyAlgorithm := range calico.KeyAlgorithms {
		if keyAlgorithm == "RSAWithSize8192" {
			continue // takes up to a minute, and is made like the others
		}
		key := must.Get(calico.NewKey(keyAlgorithm))(t)
		for _, signatureAlgorithm := range calico.SignatureAlgorithms {
			i := typha(t, "ECDSAWithCurve256", signatureAlgorithm)
			i.Key = key
			pkcs10, err := i.PKCS10()
			match := strings.HasPrefix(keyAlgorithm,
				"ECDSA") == strings.HasPrefix(signatureAlgorithm, "ECDSA")
			if (err == nil) != match {
				t.Errorf("%s with %s: %v, want possible %t", keyAlgorithm, signatureAlgorithm, err,
					match)
			}
			if err != nil {
				continue
			}
			block, _ := pem.Decode(pkcs10)
			parsed, err := x509.ParseCertificateRequest(block.Bytes)
			if err != nil || parsed.CheckSignature() != nil {
				t.Errorf("%s with %s: %v, %v", keyAlgorithm, signatureAlgorithm, err,
					parsed.CheckSignature())
			}
		}
	}
}

func TestUnknownKeyAlgorithm(t *testing.T) {
	if _, err := calico.NewKey("DSA"); err == nil {
		t.Error("NewKey makes a key of an algorithm that Calico does not have")
	}
}

func TestWait(t *testing.T) {
	condition :=
		func(kind certificatesv1.RequestConditionType) []certificatesv1.CertificateSigningRequestCondition {
			return []certificatesv1.CertificateSigningRequestCondition{{Type: kind,
				Status: corev1.ConditionTrue, Reason: "Because"}}
		}
	certificate := []byte("certificate")
	pending := certificatesv1.CertificateSigningRequestStatus{}
	cases := map[string]struct {
		seen    []certificatesv1.CertificateSigningRequestStatus
		refused bool
	}{
		"approved, then issued": {seen: []certificatesv1.CertificateSigningRequestStatus{pending,
			{Conditions: condition("Approved")}, {Conditions: condition("Approved"),
				Certificate: certificate}}},
		"issued, then approved": {seen: []certificatesv1.CertificateSigningRequestStatus{
			{Certificate: certificate},
			{Conditions: condition("Approved"), Certificate: certificate},
		}},
		"denied": {seen: []certificatesv1.CertificateSigningRequestStatus{pending,
			{Conditions: condition("Denied")}}, refused: true},
		"failed": {seen: []certificatesv1.CertificateSigningRequestStatus{{Conditions: condition(
			"Failed")}}, refused: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			watcher := watch.NewFakeWithChanSize(len(c.seen)+1, false)
			watcher.Add(object("other", c.seen[len(c.seen)-1]))
			for _, status := range c.seen {
				watcher.Modify(object("mine", status))
			}
			client := fake.NewClientset()
			client.PrependWatchReactor("certificatesigningrequests",
				clienttesting.DefaultWatchReactor(watcher, nil))
			got, err := calico.Wait(t.Context(), client, "mine")
			var refused *calico.Refused
			if errors.As(err, &refused) != c.refused || (err != nil && !c.refused) {
				t.Fatalf("got %v, want refused %t", err, c.refused)
			}
			if !c.refused && string(got.Status.Certificate) != string(certificate) {
				t.Errorf("certificate is %q", got.Status.Certificate)
			}
		})
	}
}

func object(name string, status certificatesv1.CertificateSigningRequestStatus) runtime.Object {
	return &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: status}
}
