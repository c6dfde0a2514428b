// Package calico asks for certificates as Calico's pods do: a Component is who
// asks and for what names, and an InitContainer is one run of the container
// key-cert-provisioner, which makes the request, hands it in with its pod's own
// credentials and waits for the certificate.
//
// What goes to the API server is what Calico sends, to the byte except for keys
// and signatures. What differs is for the sake of tests: the key is given, since
// some take a minute to make, and a refusal is an error at once, where
// the original waits out its timer.
package calico

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"net"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	certificatesclient "k8s.io/client-go/kubernetes/typed/certificates/v1"
)

// Timeout is how long the original waits for its certificate, including the
// time that it takes to make its key, before its pod fails and starts over.
const Timeout = 90 * time.Second

// Component is what one of Calico's components asks for.
type Component struct {
	Namespace      string
	ServiceAccount string
	SecretName     string // first part of the request's name
	App            string // value of its labels
	CommonName     string // default: the first of DNSNames
	DNSNames       []string
}

// OpenSource are the components of open source Calico that ask for
// certificates.
func OpenSource(clusterDomain string) []Component {
	const namespace = "calico-system"
	return []Component{
		{Namespace: namespace, ServiceAccount: "calico-node", SecretName: "node-certs",
			App: "calico-node", DNSNames: []string{"typha-client"}},
		{Namespace: namespace, ServiceAccount: "calico-typha", SecretName: "typha-certs",
			App: "calico-typha", DNSNames: []string{"typha-server"}},
		{Namespace: namespace, ServiceAccount: "calico-apiserver",
			SecretName: "calico-apiserver-certs", App: "calico-apiserver",
			DNSNames: ServiceNames("calico-api", namespace, clusterDomain)},
	}
}

// ServiceNames are the DNS names of a service, shortest first.
func ServiceNames(service, namespace, clusterDomain string) []string {
	qualified := service + "." + namespace
	return []string{service, qualified, qualified + ".svc", qualified + ".svc." + clusterDomain}
}

// InitContainer is one run of key-cert-provisioner in a pod.
type InitContainer struct {
	Component
	Pod                *corev1.Pod
	SignerName         string
	Key                crypto.Signer
	SignatureAlgorithm string // of the request, by Calico's name for it
}

// Refused is the error of a request that ended in Denied or Failed.
type Refused struct {
	Name      string
	Condition certificatesv1.CertificateSigningRequestCondition
}

// Error says which request was refused, how and why.
func (r *Refused) Error() string {
	return fmt.Sprintf("certificate request %s is %s: %s: %s", r.Name, r.Condition.Type,
		r.Condition.Reason, r.Condition.Message)
}

// Name is the request's.
func (i InitContainer) Name() string { return i.SecretName + ":" + i.Pod.Name }

// Run submits the request and waits for its end, with client having the pod's
// credentials. It returns the request as it ended; if that was not with a
// certificate the error is a *Refused.
func (i InitContainer) Run(ctx context.Context,
	client kubernetes.Interface) (*certificatesv1.CertificateSigningRequest, error) {
	request, err := i.Submit(ctx, client)
	if err != nil {
		return nil, err
	}
	return Wait(ctx, client, request.Name)
}

// Submit creates the request, instead of an earlier one of the same name:
// that one's key was lost with the container that made it.
func (i InitContainer) Submit(ctx context.Context,
	client kubernetes.Interface) (*certificatesv1.CertificateSigningRequest, error) {
	request, err := i.Object()
	if err != nil {
		return nil, err
	}
	requests := client.CertificatesV1().CertificateSigningRequests()
	created, err := requests.Create(ctx, request, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return replace(ctx, requests, request)
	}
	return created, err
}

func replace(ctx context.Context, requests certificatesclient.CertificateSigningRequestInterface,
	request *certificatesv1.CertificateSigningRequest) (*certificatesv1.CertificateSigningRequest, error) {
	if err := requests.Delete(ctx, request.Name, metav1.DeleteOptions{}); err != nil {
		return nil, err
	}
	return requests.Create(ctx, request, metav1.CreateOptions{})
}

// Object is the request as it is created.
func (i InitContainer) Object() (*certificatesv1.CertificateSigningRequest, error) {
	pkcs10, err := i.PKCS10()
	if err != nil {
		return nil, err
	}
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{
			Name:   i.Name(),
			Labels: map[string]string{"k8s-app": i.App, "operator.tigera.io/csr": i.App},
		},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pkcs10,
			SignerName: i.SignerName,
			Usages: []certificatesv1.KeyUsage{
				certificatesv1.UsageServerAuth,
				certificatesv1.UsageClientAuth,
				certificatesv1.UsageDigitalSignature,
				certificatesv1.UsageKeyAgreement,
				certificatesv1.UsageKeyEncipherment,
			},
		},
	}, nil
}

// PKCS10 is the PEM of what is asked for.
func (i InitContainer) PKCS10() ([]byte, error) {
	commonName := i.CommonName
	if commonName == "" && len(i.DNSNames) > 0 {
		commonName = i.DNSNames[0]
	}
	algorithm, err := signatureAlgorithm(i.SignatureAlgorithm)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{
			Country: []string{"US"}, Province: []string{"California"},
			Locality:     []string{"San Francisco"},
			Organization: []string{"Tigera"}, OrganizationalUnit: []string{"Engineering"},
			CommonName: commonName,
		},
		DNSNames:           i.DNSNames,
		IPAddresses:        []net.IP{net.ParseIP(i.Pod.Status.PodIP)},
		SignatureAlgorithm: algorithm,
		ExtraExtensions:    extensions(),
	}, i.Key)
	if err != nil {
		return nil, fmt.Errorf("PKCS#10 of %s: %w", i.Name(), err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// extensions are those that Calico asks for after the names: basicConstraints
// of no CA; keyUsage of digitalSignature, keyEncipherment and keyAgreement;
// extKeyUsage of serverAuth and clientAuth.
func extensions() []pkix.Extension {
	return []pkix.Extension{
		{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x00}},
		{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true,
			Value: []byte{0x03, 0x02, 0x03, 0xa8}},
		{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: []byte{
			0x30, 0x14,
			0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01,
			0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02,
		}},
	}
}

// Wait waits until the request of that name has ended. Like the original it
// watches all requests, gives up after Timeout, and is done when one object has
// both a certificate and the approval. The watch begins with what is there already.
func Wait(ctx context.Context, client kubernetes.Interface,
	name string) (*certificatesv1.CertificateSigningRequest, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	watcher, err := client.CertificatesV1().CertificateSigningRequests().Watch(ctx,
		metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("watch certificate requests: %w", err)
	}
	defer watcher.Stop()
	var last *certificatesv1.CertificateSigningRequest
	for event := range watcher.ResultChan() {
		if event.Type == watch.Error {
			return last, fmt.Errorf("watch of certificate requests: %w",
				apierrors.FromObject(event.Object))
		}
		request, ok := event.Object.(*certificatesv1.CertificateSigningRequest)
		if !ok || request.Name != name || event.Type == watch.Deleted {
			continue
		}
		last = request
		if done, err := ended(request); done || err != nil {
			return request, err
		}
	}
	if ctx.Err() != nil {
		return last, fmt.Errorf("certificate request %s has not ended: %w", name,
			context.Cause(ctx))
	}
	return last, fmt.Errorf("certificate request %s has not ended, and the server closed the watch", name)
}

func ended(request *certificatesv1.CertificateSigningRequest) (bool, error) {
	approved := false
	for _, condition := range request.Status.Conditions {
		if condition.Status != corev1.ConditionTrue {
			continue
		}
		switch condition.Type {
		case certificatesv1.CertificateApproved:
			approved = true
		case certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
			return false, &Refused{Name: request.Name, Condition: condition}
		}
	}
	return approved && len(request.Status.Certificate) > 0, nil
}
