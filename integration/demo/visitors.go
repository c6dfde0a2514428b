// Package demo is the main job as a spectator sees it: pods of Calico's service accounts ask as Calico's
// init container does, and so do impostors; a table says who got what, and why not.
//
// AskAll needs an API server and an hsm-signer that serves SignerName there; it starts and stops
// nothing. Judge says whether everyone got what they should.
package demo

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/testenv"
)

// A Place is where visitors ask.
type Place struct {
	Cluster    *testenv.Cluster
	SignerName string
	CACert     string // file with the certificate of the CA that should sign
	Dir        string // for the certificates that openssl is to verify
}

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

// An Outcome is what a visitor got.
type Outcome struct {
	who, asked, twist string
	result, why       string
	fault             string // how this differs from what it should be
}

// AskAll lets every visitor ask, one after the other.
func (p Place) AskAll(ctx context.Context) ([]Outcome, error) {
	var outcomes []Outcome
	for i, v := range visitors() {
		o, err := v.ask(ctx, p, i)
		if err != nil {
			return nil, fmt.Errorf("%s/%s asks for the names of %s: %w", v.who.Namespace, v.who.ServiceAccount, v.asks.App, err)
		}
		outcomes = append(outcomes, o)
	}
	return outcomes, nil
}

func (v visitor) ask(ctx context.Context, p Place, number int) (Outcome, error) {
	pod, err := v.pod(ctx, p.Cluster, number)
	if err != nil {
		return Outcome{}, err
	}
	asking := pod.InitContainer(v.asks)
	asking.SignerName = p.SignerName
	if v.ip != "" {
		asking.Pod = pod.DeepCopy()
		asking.Pod.Status.PodIP = v.ip
	}
	csr, err := asking.Object()
	if err != nil {
		return Outcome{}, err
	}
	if v.change != nil {
		v.change(csr)
	}
	if _, err := pod.Client.CertificatesV1().CertificateSigningRequests().Create(ctx, csr, metav1.CreateOptions{}); err != nil {
		return Outcome{}, err
	}
	answered, err := calico.Wait(ctx, pod.Client, csr.Name)
	return v.outcome(ctx, p, answered, err)
}

// pod creates the requester's pod, with a name that no pod had before.
func (v visitor) pod(ctx context.Context, cluster *testenv.Cluster, number int) (testenv.Pod, error) {
	pod, err := cluster.NewPod(ctx, testenv.PodSpec{
		Namespace: v.who.Namespace, ServiceAccount: v.who.ServiceAccount,
		Name: fmt.Sprintf("%s-%s", v.who.ServiceAccount, strings.ToLower(rand.Text()[:5])),
		IPs:  []string{fmt.Sprintf("10.65.0.%d", number+10)},
	})
	if err != nil || !v.loose {
		return pod, err
	}
	token, err := cluster.UnboundToken(ctx, v.who.Namespace, v.who.ServiceAccount)
	if err != nil {
		return pod, err
	}
	return testenv.PodWith(pod.Pod, cluster.ConfigFor(token))
}

// outcome says what came of the request, and whether that is right.
func (v visitor) outcome(ctx context.Context, p Place, csr *certificatesv1.CertificateSigningRequest, err error) (Outcome, error) {
	o := Outcome{who: v.who.Namespace + "/" + v.who.ServiceAccount, asked: v.asks.DNSNames[0], twist: v.twist}
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
	return o, p.verify(ctx, csr)
}

func parse(csr *certificatesv1.CertificateSigningRequest) (*x509.Certificate, error) {
	block, _ := pem.Decode(csr.Status.Certificate)
	if block == nil {
		return nil, fmt.Errorf("the certificate of %s is not PEM", csr.Name)
	}
	return x509.ParseCertificate(block.Bytes)
}

// verify has openssl check the chain.
func (p Place) verify(ctx context.Context, csr *certificatesv1.CertificateSigningRequest) error {
	file := filepath.Join(p.Dir, strings.ReplaceAll(csr.Name, ":", "-")+".crt")
	if err := os.WriteFile(file, csr.Status.Certificate, 0o600); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "openssl", "verify", "-x509_strict", "-CAfile", p.CACert, "-untrusted", file, file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("openssl verify: %w: %s", err, out)
	}
	return nil
}

// Judge compares what everyone got with what they should have got.
func Judge(out *Screen, outcomes []Outcome) error {
	var wrong []string
	for _, o := range outcomes {
		if o.fault != "" {
			wrong = append(wrong, o.who+" asking for "+o.asked+": "+o.fault)
		}
	}
	if len(wrong) > 0 {
		return errors.New("not everyone got what they should:\n  " + strings.Join(wrong, "\n  "))
	}
	out.Step("All went as it should: every component has its certificate, openssl verifies each, every impostor was denied")
	return nil
}
