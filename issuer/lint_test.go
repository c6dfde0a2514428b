package issuer

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// constrained is an issuer whose CA permits DNS names below the domain alone, and counts what its
// key signs.
func constrained(t *testing.T, domain string) (*Issuer, *int) {
	t.Helper()
	key := pkcs10test.NewKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "constrained"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: []string{domain},
		ExcludedIPRanges: []*net.IPNet{{IP: net.IPv4(10, 9, 0, 0).To4(),
			Mask: net.CIDRMask(16, 32)}},
	}
	ca, err := ParseCA(encodePEM(create(t, template, nil, &key.PublicKey, key).Raw))
	must.OK(t, err)
	signatures := 0
	counting := countingKey{softKey{key: key}, &signatures}
	i, err := New(Authority{CA: ca, Key: counting}, newJournal(t, ca))
	must.OK(t, err)
	return i, &signatures
}

// A name that the CA's certificate does not permit is found before anything is approved or signed.
func TestNamesBeyondTheCAAreNotSigned(t *testing.T) {
	i, signatures := constrained(t, "one") // the grant has the names one and two
	_, instead, err := i.Prepare(t.Context(), grant(t, pkcs10test.NewKey(t), 0))
	refusal, isRefusal := instead.(*policy.Refusal)
	if err != nil || !isRefusal || refusal.Code() != policy.NotIssuable ||
		len(refusal.Reasons) != 1 ||
		refusal.Reasons[0].Field != "request.dnsNames" ||
		!strings.Contains(refusal.Message(), `"two" is not permitted`) {
		t.Errorf("prepare: %v, %v", instead, err)
	}
	if _, err := tryIssue(t, i, grant(t, pkcs10test.NewKey(t), 0)); err == nil {
		t.Error("it was issued")
	}
	if *signatures != 0 {
		t.Errorf("the CA's key signed %d times", *signatures)
	}
}

// countingKey counts signatures.
type countingKey struct {
	softKey
	signatures *int
}

// Signer returns the key itself.
func (k countingKey) Signer(context.Context) crypto.Signer { return k }

// Sign signs and counts.
func (k countingKey) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	*k.signatures++
	return k.softKey.Sign(r, digest, opts)
}

// What lints object to is not signed.
func TestLintsStopAWrongCertificate(t *testing.T) {
	ca := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	i := ca.issuer(t)
	for words, spoil := range map[string]func(*x509.Certificate){
		"e_serial_number_longer_than_20_octets": func(c *x509.Certificate) {
			c.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 165)
		},
		"e_ext_key_usage_cert_sign_without_ca": func(c *x509.Certificate) {
			c.BasicConstraintsValid = false
			c.KeyUsage |= x509.KeyUsageCertSign
		},
	} {
		g := grant(t, pkcs10test.NewKey(t), 0)
		template, err := newTemplate(i.CA(), g, sampleSerial, time.Now())
		must.OK(t, err)
		spoil(template)
		if _, findings := i.CA().linter.issue(template,
			g.PublicKey()); !strings.Contains(fmt.Sprint(findings), words) {
			t.Errorf("%v; want %q", findings, words)
		}
	}
}

// What the key signs is what was linted, byte by byte.
func TestTheLintedBytesAreSigned(t *testing.T) {
	i := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)).issuer(t)
	prepared := prepare(t, i, grant(t, pkcs10test.NewKey(t), 0))
	text, err := prepared.Issue(t.Context())
	must.OK(t, err)
	certs, err := parseCertificates(text)
	if err != nil ||
		string(certs[0].RawTBSCertificate) != string(prepared.once.linted.TBS.FullBytes) ||
		certs[0].CheckSignatureFrom(i.CA().cert) != nil {
		t.Errorf("%v", err)
	}
}
