package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"maps"
	"slices"
	"strings"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
)

// A rehearsal makes each certificate first under a CA that is the real one but for its key, which is
// in memory and thrown away. What it makes is looked at from all sides, and only then does the real key
// sign the very same bytes.
type rehearsal struct {
	key   crypto.Signer
	ca    *x509.Certificate
	roots *x509.CertPool
	lints lint.Registry
}

func newRehearsal(ca *x509.Certificate) (*rehearsal, error) {
	key, err := throwawayKey(ca.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("key for the rehearsal: %w", err)
	}
	// What stands in the CA's certificate stands in this one too, name constraints above all.
	template := &x509.Certificate{
		SerialNumber: ca.SerialNumber, RawSubject: ca.RawSubject, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: ca.KeyUsage, ExtKeyUsage: ca.ExtKeyUsage, UnknownExtKeyUsage: ca.UnknownExtKeyUsage,
		BasicConstraintsValid: true, IsCA: true, SubjectKeyId: ca.SubjectKeyId,
		PermittedDNSDomainsCritical: ca.PermittedDNSDomainsCritical, PermittedDNSDomains: ca.PermittedDNSDomains, ExcludedDNSDomains: ca.ExcludedDNSDomains,
		PermittedIPRanges: ca.PermittedIPRanges, ExcludedIPRanges: ca.ExcludedIPRanges,
		PermittedEmailAddresses: ca.PermittedEmailAddresses, ExcludedEmailAddresses: ca.ExcludedEmailAddresses,
		PermittedURIDomains: ca.PermittedURIDomains, ExcludedURIDomains: ca.ExcludedURIDomains,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("CA for the rehearsal: %w", err)
	}
	r := &rehearsal{key: key, roots: x509.NewCertPool()}
	if r.ca, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("CA for the rehearsal: %w", err)
	}
	r.roots.AddCert(r.ca)
	r.lints, err = lints()
	return r, err
}

// throwawayKey is of the kind of the CA's, so that the signature algorithm is the same; its size does
// not show in what is signed.
func throwawayKey(like crypto.PublicKey) (crypto.Signer, error) {
	switch key := like.(type) {
	case *rsa.PublicKey:
		return rsa.GenerateKey(rand.Reader, 2048)
	case *ecdsa.PublicKey:
		return ecdsa.GenerateKey(key.Curve, rand.Reader)
	case ed25519.PublicKey:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// lints are those of the RFCs and of the community. Two of the community's are left out, which cost
// more than all others together: one looks for keys of a small private exponent, which only
// their owners can have made, the other for one public CA's certificates. The rules of the CA/Browser
// Forum and of root programs are for public CAs, which this is not.
func lints() (lint.Registry, error) {
	registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{
		IncludeSources: lint.SourceList{lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC8813, lint.Community},
		ExcludeNames:   []string{"e_cert_issued_by_compromised_emudhra_ca", "e_ecdsa_small_private_key"},
	})
	if err != nil {
		return nil, fmt.Errorf("lints: %w", err)
	}
	return registry, nil
}

// A certificate is one in DER (RFC 5280, section 4.1), taken apart.
type certificate struct {
	TBS       asn1.RawValue // what is signed
	Algorithm asn1.RawValue
	Signature asn1.BitString
}

// rehearse makes the certificate with the throwaway key and returns it; the real one differs in
// nothing but the signature. It answers with what is wrong: names that the CA's certificate does not
// permit, or a finding of a lint.
func (r *rehearsal) rehearse(template *x509.Certificate, public crypto.PublicKey) (*certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, r.ca, public, r.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the certificate cannot be read again: %w", err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: r.roots, CurrentTime: latest(leaf.NotBefore, r.ca.NotBefore), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, fmt.Errorf("under the CA's certificate the certificate would not be valid: %w", err)
	}
	if err := r.lint(der); err != nil {
		return nil, err
	}
	var c certificate
	if _, err := asn1.Unmarshal(der, &c); err != nil {
		return nil, fmt.Errorf("the certificate cannot be taken apart: %w", err)
	}
	return &c, nil
}

// lint answers with what lints object to.
func (r *rehearsal) lint(der []byte) error {
	cert, err := zx509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("the certificate cannot be linted: %w", err)
	}
	results := zlint.LintCertificateEx(cert, r.lints).Results
	var findings []string
	for _, name := range slices.Sorted(maps.Keys(results)) {
		if result := results[name]; result.Status >= lint.Warn {
			findings = append(findings, strings.TrimSpace(name+" "+result.Details))
		}
	}
	if len(findings) > 0 {
		return fmt.Errorf("lints object to the certificate: %s", strings.Join(findings, "; "))
	}
	return nil
}
