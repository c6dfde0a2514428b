// Package demo shows hsm-signer's main job: pods of Calico's service accounts request certificates
// as Calico's init container does, and so do impostors. A table shows who gets a certificate, and
// why others do not.
//
// AskAll needs a running API server and an hsm-signer that serves SignerName. Judge returns an
// error unless every requester got the right answer.
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

// A Demo runs the requesters against a cluster.
type Demo struct {
	Cluster    *testenv.Cluster
	SignerName string
	CACert     string // path of the certificate of the CA that should sign
	Dir        string // for the certificates that openssl verifies
}

// A requester is a pod that requests a certificate, and the right answer.
type requester struct {
	who     calico.Component // the component of the pod
	asks    calico.Component // the component whose names it requests
	twist   string           // what is wrong with the request, if anything
	change  func(*certificatesv1.CertificateSigningRequest)
	ip      string // requested instead of its own
	unbound bool   // its token is not bound to a pod
	want    string // the reason of the denial; empty: a certificate
}

// requesters returns the components, which get their certificates, and impostors, which do not.
func requesters() []requester {
	components := calico.OpenSource("cluster.local")
	node, typha := components[0], components[1]
	stranger := calico.Component{
		Namespace: "default", ServiceAccount: "default", SecretName: "mine", App: "mine",
	}
	var all []requester
	for _, c := range components {
		all = append(all, requester{who: c, asks: c})
	}
	addCertSign := func(csr *certificatesv1.CertificateSigningRequest) {
		csr.Spec.Usages = append(csr.Spec.Usages, certificatesv1.UsageCertSign)
	}
	repeat := func(csr *certificatesv1.CertificateSigningRequest) {
		csr.Spec.Request = append(csr.Spec.Request, csr.Spec.Request...)
	}
	return append(all,
		requester{who: node, asks: typha, twist: "another component's name",
			want: "NameNotAllowed"},
		requester{who: stranger, asks: typha, twist: "no component of Calico",
			want: "RequesterNotAllowed"},
		requester{
			who: node, asks: node, twist: "the IP of another pod", ip: "10.65.9.9",
			want: "NameNotAllowed",
		},
		requester{
			who: typha, asks: typha, twist: "a token that names no pod", unbound: true,
			want: "PodNotVerified",
		},
		requester{
			who: typha, asks: typha, twist: "the usage cert sign", want: "UsageNotAllowed",
			change: addCertSign,
		},
		requester{
			who: typha, asks: typha, twist: "a second request hidden behind the first",
			want: "InvalidRequest", change: repeat,
		},
	)
}

// An Outcome is the answer that a requester got.
type Outcome struct {
	who, asked, twist string
	result, why       string
	fault             string // how it differs from the right answer; empty: not at all
}

// AskAll runs every requester, one after the other.
func (d Demo) AskAll(ctx context.Context) ([]Outcome, error) {
	var outcomes []Outcome
	for i, r := range requesters() {
		o, err := r.ask(ctx, d, i)
		if err != nil {
			return nil, fmt.Errorf("%s/%s requests the names of %s: %w",
				r.who.Namespace, r.who.ServiceAccount, r.asks.App, err)
		}
		outcomes = append(outcomes, o)
	}
	return outcomes, nil
}

func (r requester) ask(ctx context.Context, d Demo, number int) (Outcome, error) {
	pod, err := r.pod(ctx, d.Cluster, number)
	if err != nil {
		return Outcome{}, err
	}
	asking := pod.InitContainer(r.asks)
	asking.SignerName = d.SignerName
	if r.ip != "" {
		asking.Pod = pod.DeepCopy()
		asking.Pod.Status.PodIP = r.ip
	}
	csr, err := asking.Object()
	if err != nil {
		return Outcome{}, err
	}
	if r.change != nil {
		r.change(csr)
	}
	if _, err := pod.Requests().Create(ctx, csr,
		metav1.CreateOptions{}); err != nil {
		return Outcome{}, err
	}
	answered, err := calico.Wait(ctx, pod.Client, csr.Name)
	return r.outcome(ctx, d, answered, err)
}

// pod creates the requester's pod, with a name that no pod had before.
func (r requester) pod(ctx context.Context, cluster *testenv.Cluster, number int) (testenv.Pod,
	error) {
	pod, err := cluster.NewPod(ctx, testenv.PodSpec{
		Namespace: r.who.Namespace, ServiceAccount: r.who.ServiceAccount,
		Name: fmt.Sprintf("%s-%s", r.who.ServiceAccount, strings.ToLower(rand.Text()[:5])),
		IPs:  []string{fmt.Sprintf("10.66.0.%d", number+1)},
	})
	if err != nil || !r.unbound {
		return pod, err
	}
	token, err := cluster.UnboundToken(ctx, r.who.Namespace, r.who.ServiceAccount)
	if err != nil {
		return pod, err
	}
	return testenv.PodWith(pod.Pod, cluster.ConfigFor(token))
}

// outcome describes the answer to the request, and how it differs from the right one.
func (r requester) outcome(
	ctx context.Context, d Demo, csr *certificatesv1.CertificateSigningRequest, err error,
) (Outcome, error) {
	o := Outcome{who: r.who.Namespace + "/" + r.who.ServiceAccount, asked: r.asks.DNSNames[0],
		twist: r.twist}
	var refused *calico.Refused
	switch {
	case errors.As(err, &refused):
		o.result, o.why = string(refused.Condition.Type),
			refused.Condition.Reason+": "+refused.Condition.Message
		if r.want != refused.Condition.Reason {
			o.fault = fmt.Sprintf("%s: %s; want %q", o.result, o.why, r.want)
		}
		return o, nil
	case err != nil:
		return o, err
	case r.want != "":
		o.fault = "got a certificate, want a denial: " + r.want
	}
	cert, err := parse(csr)
	if err != nil {
		return o, err
	}
	o.result = "certificate"
	o.why = fmt.Sprintf("%s; %v; until %s", cert.SignatureAlgorithm, cert.IPAddresses,
		cert.NotAfter.Format("2006-01-02"))
	return o, d.verify(ctx, csr)
}

func parse(csr *certificatesv1.CertificateSigningRequest) (*x509.Certificate, error) {
	block, _ := pem.Decode(csr.Status.Certificate)
	if block == nil {
		return nil, fmt.Errorf("the certificate of %s is not PEM", csr.Name)
	}
	return x509.ParseCertificate(block.Bytes)
}

// verify verifies the chain with openssl.
func (d Demo) verify(ctx context.Context, csr *certificatesv1.CertificateSigningRequest) error {
	file := filepath.Join(d.Dir, strings.ReplaceAll(csr.Name, ":", "-")+".crt")
	if err := os.WriteFile(file, csr.Status.Certificate, 0o600); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "openssl", "verify", "-x509_strict", "-CAfile", d.CACert,
		"-untrusted", file, file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("openssl verify: %w: %s", err, out)
	}
	return nil
}

// Judge returns an error that names every requester with the wrong answer.
func Judge(out *Screen, outcomes []Outcome) error {
	var wrong []string
	for _, o := range outcomes {
		if o.fault != "" {
			wrong = append(wrong, o.who+" asking for "+o.asked+": "+o.fault)
		}
	}
	if len(wrong) > 0 {
		return errors.New("wrong answers:\n  " + strings.Join(wrong, "\n  "))
	}
	out.Step("Success: every component has its certificate, openssl verifies each, every " +
		"impostor was denied")
	return nil
}
