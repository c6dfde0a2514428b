// Package calico requests certificates as Calico's pods do. A Component requests a certificate for
// some names. An InitContainer is one run of the container key-cert-provisioner, which creates the
// request with its pod's credentials and waits for the certificate.
//
// The API server gets the same bytes as from Calico, except for keys and signatures. Two things
// differ for the tests: the key is given, since some keys take a minute to create, and a refusal is
// an error immediately, while the original waits for its timer.
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
)

// Timeout is how long the original waits for its certificate, including the creation of its key,
// before its pod fails and starts again.
const Timeout = 90 * time.Second

// A Component of Calico requests a certificate for these names.
type Component struct {
	Namespace      string
	ServiceAccount string
	SecretName     string // first part of the request's name
	App            string // value of its labels
	CommonName     string // default: the first of DNSNames
	DNSNames       []string
}

// OpenSource returns the components of open source Calico that request certificates.
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

// ServiceNames returns the DNS names of a service, the shortest first.
func ServiceNames(service, namespace, clusterDomain string) []string {
	qualified := service + "." + namespace
	return []string{service, qualified, qualified + ".svc", qualified + ".svc." + clusterDomain}
}

// An InitContainer is one run of key-cert-provisioner in a pod.
type InitContainer struct {
	Component
	Pod                *corev1.Pod
	SignerName         string
	Key                crypto.Signer
	SignatureAlgorithm string // of the request, by Calico's name for it
}

// Refused is the error of a request that was denied or failed.
type Refused struct {
	Name      string
	Condition certificatesv1.CertificateSigningRequestCondition
}

// Error returns the name of the request, its condition and the reason.
func (r *Refused) Error() string {
	return fmt.Sprintf("certificate request %s is %s: %s: %s", r.Name, r.Condition.Type,
		r.Condition.Reason, r.Condition.Message)
}

// Name returns the name of the request.
func (i InitContainer) Name() string { return i.SecretName + ":" + i.Pod.Name }

// Run submits the request and waits for its end. The client must have the pod's credentials. If the
// request ends without a certificate the error is a *Refused.
func (i InitContainer) Run(ctx context.Context,
	client kubernetes.Interface) (*certificatesv1.CertificateSigningRequest, error) {
	request, err := i.Submit(ctx, client)
	if err != nil {
		return nil, err
	}
	return Wait(ctx, client, request.Name)
}

// Submit creates the request, and replaces an earlier one with the same name: the key of that one
// was lost with its container.
func (i InitContainer) Submit(ctx context.Context,
	client kubernetes.Interface) (*certificatesv1.CertificateSigningRequest, error) {
	request, err := i.Object()
	if err != nil {
		return nil, err
	}
	return Create(ctx, client, request)
}

// Create creates the request, and replaces an earlier one with the same name.
func Create(ctx context.Context, client kubernetes.Interface,
	request *certificatesv1.CertificateSigningRequest) (*certificatesv1.CertificateSigningRequest,
	error) {
	requests := client.CertificatesV1().CertificateSigningRequests()
	created, err := requests.Create(ctx, request, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		return created, err
	}
	if err := requests.Delete(ctx, request.Name, metav1.DeleteOptions{}); err != nil {
		return nil, err
	}
	return requests.Create(ctx, request, metav1.CreateOptions{})
}

// Object returns the request to create.
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

// PKCS10 returns the PKCS#10 request in PEM.
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

// extensions returns the extensions that Calico requests after the names: basicConstraints without
// CA; keyUsage with digitalSignature, keyEncipherment and keyAgreement; extKeyUsage with serverAuth
// and clientAuth.
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

// Wait waits until the request with this name has ended. Like the original it watches all requests
// from the existing ones on, gives up after Timeout, and ends when an object has both a certificate
// and the approval.
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
	return last,
		fmt.Errorf("certificate request %s has not ended, and the server closed the watch", name)
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
