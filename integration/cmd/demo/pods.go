package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"hsm-signer/integration/bed"
	"hsm-signer/integration/bridge"
	"hsm-signer/integration/calico"
)

// A visitor is a pod that asks for a certificate, and what it should get.
type visitor struct {
	who    calico.Component // whose pod it is
	asks   calico.Component // whose names it asks for
	twist  string           // what is odd about it; empty: nothing
	change func(*certificatesv1.CertificateSigningRequest)
	ip     string // asked for instead of its own
	loose  bool   // its token is bound to no pod
	want   string // the reason of the denial; empty: a certificate
}

// visitors are the components, who get what is theirs, and impostors, who do not.
func visitors() []visitor {
	components := calico.OpenSource("cluster.local")
	node, typha := components[0], components[1]
	stranger := calico.Component{Namespace: "default", ServiceAccount: "default", SecretName: "mine", App: "mine"}
	var all []visitor
	for _, c := range components {
		all = append(all, visitor{who: c, asks: c})
	}
	return append(all,
		visitor{who: node, asks: typha, twist: "another component's name", want: "NameNotAllowed"},
		visitor{who: stranger, asks: typha, twist: "no component of Calico", want: "RequesterNotAllowed"},
		visitor{who: node, asks: node, twist: "the IP of another pod", ip: "10.65.9.9", want: "NameNotAllowed"},
		visitor{who: typha, asks: typha, twist: "a token that names no pod", loose: true, want: "PodNotVerified"},
		visitor{who: typha, asks: typha, twist: "the usage cert sign", want: "UsageNotAllowed", change: func(csr *certificatesv1.CertificateSigningRequest) {
			csr.Spec.Usages = append(csr.Spec.Usages, certificatesv1.UsageCertSign)
		}},
		visitor{who: typha, asks: typha, twist: "a second request hidden behind the first", want: "InvalidRequest", change: func(csr *certificatesv1.CertificateSigningRequest) {
			csr.Spec.Request = append(csr.Spec.Request, csr.Spec.Request...)
		}},
	)
}

// An outcome is what a visitor got.
type outcome struct {
	who, asked, twist string
	result, why       string
	fault             string // how this differs from what it should be
}

// askAll lets every visitor ask, one after the other.
func askAll(ctx context.Context, b *bridge.Bridge, ca bridge.CA) ([]outcome, error) {
	var outcomes []outcome
	for i, v := range visitors() {
		o, err := v.ask(ctx, b, ca, i)
		if err != nil {
			return nil, fmt.Errorf("%s/%s asks for the names of %s: %w", v.who.Namespace, v.who.ServiceAccount, v.asks.App, err)
		}
		outcomes = append(outcomes, o)
	}
	return outcomes, nil
}

func (v visitor) ask(ctx context.Context, b *bridge.Bridge, ca bridge.CA, number int) (outcome, error) {
	pod, client, err := v.enter(ctx, b, number)
	if err != nil {
		return outcome{}, err
	}
	key, err := calico.NewKey("ECDSAWithCurve256")
	if err != nil {
		return outcome{}, err
	}
	asking := calico.InitContainer{Component: v.asks, Pod: pod, SignerName: bridge.SignerName, Key: key, SignatureAlgorithm: "ECDSAWithSHA256"}
	if v.ip != "" {
		asking.Pod = pod.DeepCopy()
		asking.Pod.Status.PodIP = v.ip
	}
	csr, err := asking.Object()
	if err != nil {
		return outcome{}, err
	}
	if v.change != nil {
		v.change(csr)
	}
	if _, err := client.CertificatesV1().CertificateSigningRequests().Create(ctx, csr, metav1.CreateOptions{}); err != nil {
		return outcome{}, err
	}
	answered, err := calico.Wait(ctx, client, csr.Name)
	return v.outcome(ctx, ca, answered, err)
}

// enter makes the visitor's pod and the client that it has.
func (v visitor) enter(ctx context.Context, b *bridge.Bridge, number int) (*corev1.Pod, kubernetes.Interface, error) {
	pod, err := b.Cluster.Pod(ctx, bed.PodSpec{
		Namespace: v.who.Namespace, ServiceAccount: v.who.ServiceAccount,
		Name: fmt.Sprintf("%s-%d", v.who.ServiceAccount, number), IPs: []string{fmt.Sprintf("10.65.0.%d", number+10)},
	})
	if err != nil {
		return nil, nil, err
	}
	token, err := b.Cluster.TokenFor(ctx, pod)
	if v.loose {
		token, err = b.Cluster.UnboundToken(ctx, v.who.Namespace, v.who.ServiceAccount)
	}
	if err != nil {
		return nil, nil, err
	}
	client, err := kubernetes.NewForConfig(b.Cluster.ConfigFor(token))
	return pod, client, err
}

// outcome says what came of the request, and whether that is right.
func (v visitor) outcome(ctx context.Context, ca bridge.CA, csr *certificatesv1.CertificateSigningRequest, err error) (outcome, error) {
	o := outcome{who: v.who.Namespace + "/" + v.who.ServiceAccount, asked: v.asks.DNSNames[0], twist: v.twist}
	var refused *calico.Refused
	switch {
	case errors.As(err, &refused):
		o.result, o.why = string(refused.Condition.Type), refused.Condition.Reason+": "+refused.Condition.Message
		if v.want != refused.Condition.Reason {
			o.fault = fmt.Sprintf("%s: %s; it should have been %q", o.result, o.why, v.want)
		}
		return o, nil
	case err != nil:
		return o, err
	case v.want != "":
		o.fault = "it got a certificate, and should have been denied: " + v.want
	}
	cert, err := parse(csr)
	if err != nil {
		return o, err
	}
	o.result = "certificate"
	o.why = fmt.Sprintf("%s; %v; until %s", cert.SignatureAlgorithm, cert.IPAddresses, cert.NotAfter.Format("2006-01-02"))
	return o, verify(ctx, ca, csr)
}

func parse(csr *certificatesv1.CertificateSigningRequest) (*x509.Certificate, error) {
	block, _ := pem.Decode(csr.Status.Certificate)
	if block == nil {
		return nil, fmt.Errorf("the certificate of %s is not PEM", csr.Name)
	}
	return x509.ParseCertificate(block.Bytes)
}

// verify has openssl check the chain.
func verify(ctx context.Context, ca bridge.CA, csr *certificatesv1.CertificateSigningRequest) error {
	file := filepath.Join(filepath.Dir(ca.CertFile), strings.ReplaceAll(csr.Name, ":", "-")+".crt")
	if err := os.WriteFile(file, csr.Status.Certificate, 0o600); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "openssl", "verify", "-x509_strict", "-CAfile", ca.CertFile, "-untrusted", file, file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("openssl verify: %w: %s", err, out)
	}
	return nil
}
