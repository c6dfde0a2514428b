package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3/lint"

	"hsm-signer/policy"
)

// Lint reports why the certificate of the grant can never be issued under the CA, or nil: the
// expensive checks of the requester's key, names that the CA or one above it does not permit, and
// findings of lints. It needs neither the CA's key nor the journal, and does not spend the grant.
func Lint(ca *CA, grant *policy.Grant) *policy.Refusal {
	if refusal := grant.CheckKey(); refusal != nil {
		return refusal
	}
	template, err := newTemplate(ca, grant, sampleSerial, time.Now())
	if err != nil {
		return refusalOf(grant, []finding{{fieldRequest, err.Error()}})
	}
	_, findings := ca.linter.issue(template, grant.PublicKey())
	return refusalOf(grant, findings)
}

// sampleSerial is as long as the serial numbers of a journal.
var sampleSerial = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 158), big.NewInt(1))

// A finding is one reason why a certificate cannot be issued.
type finding struct{ field, message string }

// Fields of a request that findings name.
const (
	fieldRequest   = "request"
	fieldDNSNames  = "request.dnsNames"
	fieldIPs       = "request.ipAddresses"
	fieldURIs      = "request.uris"
	fieldEmails    = "request.emailAddresses"
	fieldSubject   = "request.subject"
	fieldPublicKey = "request.publicKey"
	fieldUsages    = "spec.usages"
)

// refusalOf turns findings into a refusal of the grant's request; it returns nil without findings.
func refusalOf(grant *policy.Grant, findings []finding) *policy.Refusal {
	if len(findings) == 0 {
		return nil
	}
	refusal := &policy.Refusal{PolicyHash: grant.PolicyHash(), RequestSHA256: grant.RequestSHA256()}
	for _, f := range findings {
		refusal.Reasons = append(refusal.Reasons,
			policy.Reason{Code: policy.NotIssuable, Rule: grant.Rule(), Field: f.field,
				Message: ascii(f.message)})
	}
	return refusal
}

// ascii escapes what is not printable ASCII: a message is shown in terminals.
func ascii(message string) string {
	quoted := strconv.QuoteToASCII(message)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// A linter issues each certificate with a throwaway key before the real key signs the same bytes.
// It keeps a copy of the CA's chain that differs from it in keys, signatures and dates alone, so
// that whatever the chain does not allow shows.
type linter struct {
	key           crypto.Signer
	ca            *x509.Certificate
	roots         *x509.CertPool
	intermediates *x509.CertPool
	constrained   bool // a certificate of the chain constrains the names below it
	lints         lint.Registry
}

// newLinter copies a chain, the issuing CA first. The last certificate is trusted.
func newLinter(chain []*x509.Certificate) (*linter, error) {
	l := &linter{roots: x509.NewCertPool(), intermediates: x509.NewCertPool()}
	var err error
	if l.lints, err = keptLints(); err != nil {
		return nil, err
	}
	keys := make([]crypto.Signer, len(chain))
	for i := range chain {
		if keys[i], err = throwawayKey(chain[i].PublicKey, i == 0); err != nil {
			return nil, fmt.Errorf("throwaway key: %w", err)
		}
	}
	l.key = keys[0]
	l.constrained = slices.ContainsFunc(chain, constrainsNames)
	for i, cert := range chain {
		copied, err := copyCertificate(cert, keys[i].Public(), keys[min(i+1, len(chain)-1)])
		if err != nil {
			return nil, fmt.Errorf("copy the certificate of %s: %w", cert.Subject, err)
		}
		if i == 0 {
			l.ca = copied
		}
		if i == len(chain)-1 {
			l.roots.AddCert(copied)
		} else {
			l.intermediates.AddCert(copied)
		}
	}
	return l, nil
}

// copyCertificate returns the certificate with the same names and extensions, for another key, and
// valid at any time.
func copyCertificate(cert *x509.Certificate, public crypto.PublicKey,
	signer crypto.Signer) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: cert.SerialNumber, RawSubject: cert.RawSubject,
		ExtraExtensions: cert.Extensions,
		NotBefore:       time.Date(1950, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:        time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template,
		&x509.Certificate{RawSubject: cert.RawIssuer}, public, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// throwawayKey returns a key for a copy. That of the issuing CA has the type of the original, so
// that the signature algorithm is the same. Its size does not show in what is signed, so it is the
// one with which the most can be linted per second.
func throwawayKey(like crypto.PublicKey, issuing bool) (crypto.Signer, error) {
	switch like.(type) {
	case *rsa.PublicKey:
		if issuing {
			return throwawayRSAKey()
		}
	case ed25519.PublicKey:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// throwawayRSAKey is made once: it takes long, and nobody trusts it.
var throwawayRSAKey = sync.OnceValues(func() (crypto.Signer, error) {
	return rsa.GenerateKey(rand.Reader, 2048)
})

// A certificate is one in DER (RFC 5280, section 4.1), taken apart.
type certificate struct {
	TBS       asn1.RawValue // what is signed
	Algorithm asn1.RawValue
	Signature asn1.BitString
}

// A linted is a certificate that only lacks the CA's signature.
type linted struct {
	certificate // its signature is the throwaway key's
	serial      *big.Int
}

// issue makes the certificate with the throwaway key, and returns it or why it cannot be issued.
// The real certificate differs in nothing but the signature. A chain that constrains no names
// allows every certificate if it allows one, so [CA.lintSample] has tried it.
func (l *linter) issue(template *x509.Certificate, public crypto.PublicKey) (*linted, []finding) {
	leaf, err := l.create(template, public)
	if err != nil {
		return nil, []finding{{fieldRequest, "cannot be made into a certificate: " + err.Error()}}
	}
	var findings []finding
	if l.constrained {
		findings = l.checkChain(leaf, template)
	}
	if findings = append(findings, l.lint(leaf.Raw)...); len(findings) > 0 {
		return nil, findings
	}
	made := &linted{serial: template.SerialNumber}
	if _, err := asn1.Unmarshal(leaf.Raw, &made.certificate); err != nil {
		return nil, []finding{{fieldRequest, "cannot be made into a certificate: " + err.Error()}}
	}
	return made, nil
}

func (l *linter) create(template *x509.Certificate, public crypto.PublicKey) (*x509.Certificate,
	error) {
	der, err := x509.CreateCertificate(rand.Reader, template, l.ca, public, l.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// verify verifies the leaf as a client does that trusts the root alone.
func (l *linter) verify(leaf *x509.Certificate) error {
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: l.roots, Intermediates: l.intermediates, CurrentTime: leaf.NotBefore,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

// constrainsNames reports whether the certificate of a CA has name constraints.
func constrainsNames(cert *x509.Certificate) bool {
	return slices.ContainsFunc(cert.Extensions,
		func(e pkix.Extension) bool { return e.Id.Equal(oidNameConstraints) })
}

// checkChain reports which names the chain does not permit. All else that a chain may forbid, it
// forbids to every certificate.
func (l *linter) checkChain(leaf, template *x509.Certificate) []finding {
	err := l.verify(leaf)
	if err == nil {
		// OpenSSL takes a common name for a DNS name where there is no other, and crypto/x509 does
		// not.
		cn := leaf.Subject.CommonName
		if len(template.DNSNames) > 0 || !looksLikeDNSName(cn) {
			return nil
		}
		return l.checkName("request.commonName", template,
			x509.Certificate{DNSNames: []string{strings.ToLower(cn)}})
	}
	var findings []finding
	for _, name := range template.DNSNames {
		findings = append(findings,
			l.checkName(fieldDNSNames, template, x509.Certificate{DNSNames: []string{name}})...)
	}
	for _, ip := range template.IPAddresses {
		findings = append(findings,
			l.checkName(fieldIPs, template, x509.Certificate{IPAddresses: []net.IP{ip}})...)
	}
	for _, uri := range template.URIs {
		findings = append(findings,
			l.checkName(fieldURIs, template, x509.Certificate{URIs: []*url.URL{uri}})...)
	}
	for _, email := range template.EmailAddresses {
		findings = append(findings,
			l.checkName(fieldEmails, template,
				x509.Certificate{EmailAddresses: []string{email}})...)
	}
	if len(findings) == 0 {
		findings = []finding{{fieldRequest, "would not verify under the CA: " + err.Error()}}
	}
	return findings
}

// looksLikeDNSName reports whether OpenSSL takes a common name for a DNS name.
func looksLikeDNSName(cn string) bool {
	const hostname = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
	return strings.Contains(cn, ".") && strings.Trim(cn, hostname) == ""
}

// checkName reports whether the chain permits the one name that the certificate has.
func (l *linter) checkName(field string, template *x509.Certificate,
	one x509.Certificate) []finding {
	one.SerialNumber, one.NotBefore, one.NotAfter = template.SerialNumber, template.NotBefore,
		template.NotAfter
	leaf, err := l.create(&one, l.ca.PublicKey)
	if err == nil {
		err = l.verify(leaf)
	}
	if err == nil {
		return nil
	}
	message := err.Error()
	if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) &&
		invalid.Detail != "" {
		message = invalid.Detail
	}
	return []finding{{field, "cannot be certified by the CA: " + message}}
}

// lint reports the findings of the lints.
func (l *linter) lint(der []byte) []finding {
	cert, err := zx509.ParseCertificate(der)
	if err != nil {
		return []finding{{fieldRequest,
			"makes a certificate that cannot be linted: " + err.Error()}}
	}
	failed := map[string]string{} // by the name of the lint
	for _, one := range l.lints.CertificateLints().Lints() {
		result := one.Execute(cert, l.lints.GetConfiguration())
		if result.Status >= lint.Warn {
			failed[one.Name] = result.Details
		}
	}
	var findings []finding
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		message := "makes a certificate that fails the lint " + name + " " + failed[name]
		findings = append(findings, finding{fieldOf(name), strings.TrimSpace(message)})
	}
	return findings
}

// lintFields says which field a lint is about, by a part of the lint's name.
var lintFields = []struct{ part, field string }{
	{"uri", fieldURIs}, {"rfc822", fieldEmails}, {"email", fieldEmails},
	{"common_name", "request.commonName"},
	{"dns", fieldDNSNames}, {"san", fieldDNSNames}, {"wildcard", fieldDNSNames},
	{"postal_code", fieldSubject + ".postalCode"}, {"subj", fieldSubject}, {"utf8", fieldSubject},
	{"rsa_exp", fieldPublicKey}, {"fermat", fieldPublicKey}, {"_ku", fieldUsages},
	{"key_usage", fieldUsages}, {"rsa", fieldPublicKey},
}

func fieldOf(lintName string) string {
	for _, f := range lintFields {
		if strings.Contains(lintName, f.part) {
			return f.field
		}
	}
	return fieldRequest
}
