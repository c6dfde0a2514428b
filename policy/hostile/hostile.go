// Package hostile has certificate requests with the verdict that a signer owes each, for tests:
// what it makes itself, and what is in the folder that the environment variable HOSTILE_CORPUS
// names.
package hostile

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/csv"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hsm-signer/internal/must"
	"hsm-signer/policy/pkcs10"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// What a signer owes a request, whoever asks.
const (
	Accept = "accept" // nothing is wrong with it
	Reject = "reject" // refuse it, also under a policy that allows all that a pattern may
	// it may be granted, but nothing beyond what was checked may reach the certificate
	Strip  = "strip"
	Either = "policy" // either will do
)

// A Sample is a request and what a signer owes it.
type Sample struct {
	Name, Verdict string
	PEM           []byte
}

// Usages are those that a sample is asked for with, in Kubernetes' words: see
// [Sample.RequireNothingElse].
var Usages = []string{"server auth", "digital signature", "key encipherment"}

// corpusVariable names a folder with more samples: files, and manifest.tsv, which gives for each a
// line with its path and its verdict.
const corpusVariable = "HOSTILE_CORPUS"

// Samples are the ones made here, and those of the folder.
func Samples(t *testing.T) []Sample {
	t.Helper()
	return append(own(t), corpus(t)...)
}

// RequireNothingElse requires that the certificate holds the request's key, checked names and
// common name, the usages of [Usages], and what every certificate has, and nothing else.
func (s Sample) RequireNothingElse(t *testing.T, chain []byte) {
	t.Helper()
	asked, faults := pkcs10.Parse(s.PEM)
	if len(faults) > 0 {
		t.Errorf("%s: granted in spite of %v", s.Name, faults)
		return
	}
	block, _ := pem.Decode(chain)
	cert, err := x509.ParseCertificate(block.Bytes)
	must.OK(t, err)
	// SKI, KU, SAN, BC, AKI, EKU
	known := []string{"2.5.29.14", "2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.35", "2.5.29.37"}
	for _, extension := range cert.Extensions {
		if !slices.Contains(known, extension.Id.String()) {
			t.Errorf("%s: the certificate holds the extension %s", s.Name, extension.Id)
		}
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	_, err = asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &info)
	must.OK(t, err)
	keyID := sha256.Sum256(info.Key.RightAlign())
	subject := pkix.Name{CommonName: strings.ToLower(asked.CommonName)}.String()
	for what, ok := range map[string]bool{
		"a CA's rights":       !cert.IsCA && cert.MaxPathLen == -1,
		"another key":         samePublicKey(cert.PublicKey, asked.PublicKey),
		"a key ID of its own": bytes.Equal(cert.SubjectKeyId, keyID[:20]),
		"more of the subject": cert.Subject.String() == subject,
		"other names": slices.Equal(cert.DNSNames, asked.DNSNames) &&
			len(cert.IPAddresses) == len(asked.IPAddresses) &&
			len(cert.URIs)+len(cert.EmailAddresses) == 0,
		"usages beyond asked": cert.KeyUsage&^
			(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment) == 0,
		"extended usages": slices.Equal(cert.ExtKeyUsage,
			[]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) && len(cert.UnknownExtKeyUsage) == 0,
		"a place to fetch from": len(cert.OCSPServer)+len(cert.IssuingCertificateURL)+
			len(cert.CRLDistributionPoints) == 0,
	} {
		if !ok {
			t.Errorf("%s: the certificate holds %s: %v, subject %s, names %v %v", s.Name, what,
				cert.KeyUsage, cert.Subject, cert.DNSNames, cert.IPAddresses)
		}
	}
}

func samePublicKey(a, b any) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// corpus reads the samples of the folder that corpusVariable names.
func corpus(t *testing.T) []Sample {
	t.Helper()
	dir := os.Getenv(corpusVariable)
	if dir == "" {
		return nil
	}
	manifest, err := os.Open(filepath.Join(dir, "manifest.tsv"))
	must.OK(t, err)
	defer manifest.Close()
	reader := csv.NewReader(manifest)
	reader.Comma, reader.LazyQuotes, reader.FieldsPerRecord = '\t', true, -1
	lines, err := reader.ReadAll()
	must.OK(t, err)
	var samples []Sample
	for _, line := range lines[1:] {
		text, err := os.ReadFile(filepath.Join(dir, line[0]))
		must.OK(t, err)
		if !bytes.Contains(text, []byte("-----BEGIN")) {
			text = pkcs10test.Encode(text)
		}
		samples = append(samples, Sample{line[0], line[1], text}.consistent(t))
	}
	if len(samples) == 0 {
		t.Fatalf("no samples in %s", dir)
	}
	return samples
}

// consistent leaves open what is owed to a harmless request with another version than 0: RFC 2986
// knows no other, and such a request is among those to be refused.
func (s Sample) consistent(t *testing.T) Sample {
	t.Helper()
	if block, _ := pem.Decode(s.PEM); s.Verdict == Accept && block != nil {
		if csr, err := x509.ParseCertificateRequest(block.Bytes); err == nil && csr.Version != 0 {
			t.Logf("%s: its version is %d; whether it is refused is left open", s.Name, csr.Version)
			s.Verdict = Either
		}
	}
	return s
}

// own makes one request of each kind, and of each class of defect that a request of
// crypto/x509 can have.
func own(t *testing.T) []Sample {
	t.Helper()
	good := pkcs10test.Request{Subject: pkix.Name{CommonName: "a.example.com"},
		DNSNames: []string{"a.example.com"}}
	with := func(change func(r *pkcs10test.Request)) []byte {
		r := good
		change(&r)
		return r.PEM(t)
	}
	extension := func(value []byte, oid ...int) []byte {
		return with(func(r *pkcs10test.Request) {
			r.Extensions = []pkix.Extension{{Id: oid, Value: value}}
		})
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	must.OK(t, err)
	return []Sample{
		{"good", "accept", good.PEM(t)},
		{"an IP address", "accept", with(func(r *pkcs10test.Request) {
			r.IPs = []netip.Addr{netip.MustParseAddr("10.1.2.3")}
		})},
		{"a rich subject", "strip", with(func(r *pkcs10test.Request) {
			r.Subject.Organization = []string{"system:masters"}
		})},
		{"a key ID", "strip", extension([]byte{4, 2, 1, 2}, 2, 5, 29, 14)},
		{"a path to fetch from", "strip", extension([]byte{0x30, 0}, 1, 3, 6, 1, 5, 5, 7, 1, 1)},
		{"CA:TRUE", "strip", extension([]byte{0x30, 3, 1, 1, 0xff}, 2, 5, 29, 19)},
		{"every key usage", "strip", extension([]byte{3, 2, 0, 0xff}, 2, 5, 29, 15)},
		{"a wildcard", "reject", with(func(r *pkcs10test.Request) {
			r.DNSNames = []string{"*.example.com"}
		})},
		{"an email address", "reject", with(func(r *pkcs10test.Request) {
			r.Emails = []string{"a@example.com"}
		})},
		{"a URI", "reject", with(func(r *pkcs10test.Request) {
			r.URIs = []string{"spiffe://example.com/a"}
		})},
		{"the API server's name", "reject", with(func(r *pkcs10test.Request) {
			r.DNSNames = []string{"kubernetes.default.svc"}
		})},
		{"loopback", "reject", with(func(r *pkcs10test.Request) {
			r.IPs = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		})},
		{"the metadata service", "reject", with(func(r *pkcs10test.Request) {
			r.IPs = []netip.Addr{netip.MustParseAddr("169.254.169.254")}
		})},
		{"a common name of its own", "reject", with(func(r *pkcs10test.Request) {
			r.Subject.CommonName = "b.example.com"
		})},
		{"no name", "reject", pkcs10test.Request{}.PEM(t)},
		{"a NUL in the common name", "reject", with(func(r *pkcs10test.Request) {
			r.Subject.CommonName = "a.example.com\x00"
		})},
		{"an escape sequence", "reject", with(func(r *pkcs10test.Request) {
			r.Subject.CommonName = "\x1b[2Ja"
		})},
		{"a weak key", "reject", with(func(r *pkcs10test.Request) { r.Key = weak })},
		{"two blocks", "reject", append(good.PEM(t), good.PEM(t)...)},
		{"headers", "reject",
			bytes.Replace(good.PEM(t), []byte("REQUEST-----\n"),
				[]byte("REQUEST-----\nA: b\n\n"), 1)},
	}
}
