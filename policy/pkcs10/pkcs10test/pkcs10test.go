// Package pkcs10test makes certificate requests for tests, good ones and ones with a defect.
package pkcs10test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"net/netip"
	"net/url"
	"testing"
)

// A Request says what to ask for. Its zero value asks for nothing with a new P-256 key.
type Request struct {
	Key        crypto.Signer // nil: a new P-256 key
	Algorithm  x509.SignatureAlgorithm
	Subject    pkix.Name
	DNSNames   []string
	IPs        []netip.Addr
	URIs       []string
	Emails     []string
	Template   *x509.CertificateRequest // nil: none; the fields above are set in it
	Extensions []pkix.Extension
}

// PEM returns the request, signed with its key.
func (r Request) PEM(t testing.TB) []byte {
	t.Helper()
	return Encode(r.DER(t))
}

// DER returns the request, signed with its key.
func (r Request) DER(t testing.TB) []byte {
	t.Helper()
	if r.Key == nil {
		r.Key = NewKey(t)
	}
	der, err := r.create()
	if err != nil {
		t.Fatalf("make a certificate request: %v", err)
	}
	return der
}

// TryPEM returns the request, which must have a key, or why crypto/x509 does not make it.
func (r Request) TryPEM() ([]byte, error) {
	der, err := r.create()
	return Encode(der), err
}

func (r Request) create() ([]byte, error) {
	template := r.Template
	if template == nil {
		template = &x509.CertificateRequest{}
	}
	template.Subject = r.Subject
	template.DNSNames = r.DNSNames
	template.EmailAddresses = r.Emails
	template.SignatureAlgorithm = r.Algorithm
	template.ExtraExtensions = r.Extensions
	for _, text := range r.URIs {
		uri, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		template.URIs = append(template.URIs, uri)
	}
	for _, ip := range r.IPs {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	return x509.CreateCertificateRequest(rand.Reader, template, r.Key)
}

// NewKey returns a new P-256 key.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("make a key: %v", err)
	}
	return key
}

// Encode returns the PEM of a request in DER.
func Encode(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
