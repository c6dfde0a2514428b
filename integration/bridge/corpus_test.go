package bridge_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/csv"
	"encoding/pem"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/bridge"
	"hsm-signer/policy/pkcs10"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// A sample is a request and what a signer owes it, whoever asks: "accept", "reject", "strip" (it may
// be granted, but nothing of it beyond what was checked may reach the certificate) or "policy"
// (either will do).
type sample struct {
	name, verdict string
	pem           []byte
}

// corpusVariable names a folder with more samples: files, and manifest.tsv, which gives for each a
// line with its path and its verdict.
const corpusVariable = "HOSTILE_CORPUS"

// Under a policy that allows every requester, usage and key, and every name that a pattern may, and
// through the real API server: what must be refused is, what is harmless gets its certificate, and
// nothing reaches a certificate that was not checked.
func TestHostileRequests(t *testing.T) {
	everything, err := os.ReadFile(filepath.Join("..", "testdata", "allow-everything.yaml"))
	must(t, err)
	startReady(t, ca, withPolicy(t, string(everything)+"\nbudget: {total: 10000, perServiceAccount: 100%, perPod: 10000}\n"))
	p := newPod(t, components()[0], nextIP())
	samples := append(ownSamples(t), corpus(t)...)
	admitted := map[string]sample{}
	outcomes := map[string]int{}
	for i, s := range samples {
		name := fmt.Sprintf("sample-%d", i)
		if _, err := p.client.CertificatesV1().CertificateSigningRequests().Create(t.Context(), s.object(name), metav1.CreateOptions{}); err != nil {
			outcomes[s.verdict+": not admitted by the API server"]++
			if s.verdict == "accept" {
				t.Errorf("%s: not admitted: %v", s.name, err)
			}
			continue
		}
		admitted[name] = s
	}
	ended := waitForAll(t, admitted)
	for _, name := range slices.Sorted(maps.Keys(admitted)) {
		outcomes[admitted[name].verdict+": "+admitted[name].judge(t, ended[name])]++
	}
	for _, outcome := range slices.Sorted(maps.Keys(outcomes)) {
		t.Logf("%4d %s", outcomes[outcome], outcome)
	}
}

func (s sample) object(name string) *certificatesv1.CertificateSigningRequest {
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: s.pem, SignerName: bridge.SignerName,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageServerAuth, certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment},
		},
	}
}

// waitForAll waits until each of the requests has ended.
func waitForAll(t *testing.T, requests map[string]sample) map[string]*certificatesv1.CertificateSigningRequest {
	t.Helper()
	ended := map[string]*certificatesv1.CertificateSigningRequest{}
	eventually(t, "every request to end", func(ctx context.Context) (bool, error) {
		list, err := shared.Cluster.Client().CertificatesV1().CertificateSigningRequests().List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		for i := range list.Items {
			csr := &list.Items[i]
			denied := slices.ContainsFunc(csr.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool {
				return c.Type == certificatesv1.CertificateDenied
			})
			if _, ours := requests[csr.Name]; ours && (denied || len(csr.Status.Certificate) > 0) {
				ended[csr.Name] = csr
			}
		}
		return len(ended) == len(requests), nil
	})
	return ended
}

// judge compares what came of the sample with what it is owed.
func (s sample) judge(t *testing.T, csr *certificatesv1.CertificateSigningRequest) string {
	t.Helper()
	if len(csr.Status.Certificate) == 0 {
		condition := csr.Status.Conditions[0]
		if s.verdict == "accept" {
			t.Errorf("%s: refused: %s", s.name, condition.Message)
		}
		if strings.ContainsFunc(condition.Message, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("%s: a condition that could break a terminal: %q", s.name, condition.Message)
		}
		return "refused"
	}
	if s.verdict == "reject" {
		t.Errorf("%s: it has a certificate", s.name)
	}
	s.requireNothingElse(t, csr)
	return "granted, and nothing else in the certificate"
}

// requireNothingElse requires that the certificate holds the request's key, checked names and common
// name, the usages of spec.usages, and what every certificate has, and nothing else.
func (s sample) requireNothingElse(t *testing.T, csr *certificatesv1.CertificateSigningRequest) {
	t.Helper()
	asked, faults := pkcs10.Parse(csr.Spec.Request)
	if len(faults) > 0 {
		t.Errorf("%s: granted in spite of %v", s.name, faults)
		return
	}
	block, _ := pem.Decode(csr.Status.Certificate)
	cert, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	known := []string{"2.5.29.14", "2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.35", "2.5.29.37"} // SKI, KU, SAN, BC, AKI, EKU
	for _, extension := range cert.Extensions {
		if !slices.Contains(known, extension.Id.String()) {
			t.Errorf("%s: the certificate holds the extension %s", s.name, extension.Id)
		}
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	_, err = asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &info)
	must(t, err)
	keyID := sha256.Sum256(info.Key.RightAlign())
	subject := pkix.Name{CommonName: strings.ToLower(asked.CommonName)}.String()
	for what, ok := range map[string]bool{
		"a CA's rights":         !cert.IsCA && cert.MaxPathLen == -1,
		"another key":           samePublicKey(cert.PublicKey, asked.PublicKey),
		"a key ID of its own":   bytes.Equal(cert.SubjectKeyId, keyID[:20]),
		"more of the subject":   cert.Subject.String() == subject,
		"other names":           slices.Equal(cert.DNSNames, asked.DNSNames) && len(cert.IPAddresses) == len(asked.IPAddresses) && len(cert.URIs)+len(cert.EmailAddresses) == 0,
		"usages beyond asked":   cert.KeyUsage&^(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment) == 0,
		"extended usages":       slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) && len(cert.UnknownExtKeyUsage) == 0,
		"a place to fetch from": len(cert.OCSPServer)+len(cert.IssuingCertificateURL)+len(cert.CRLDistributionPoints) == 0,
	} {
		if !ok {
			t.Errorf("%s: the certificate holds %s: %v, subject %s, names %v %v", s.name, what, cert.KeyUsage, cert.Subject, cert.DNSNames, cert.IPAddresses)
		}
	}
}

func samePublicKey(a, b any) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// corpus reads the samples of the folder that corpusVariable names.
func corpus(t *testing.T) []sample {
	t.Helper()
	dir := os.Getenv(corpusVariable)
	if dir == "" {
		return nil
	}
	manifest, err := os.Open(filepath.Join(dir, "manifest.tsv"))
	must(t, err)
	defer manifest.Close()
	reader := csv.NewReader(manifest)
	reader.Comma, reader.LazyQuotes, reader.FieldsPerRecord = '\t', true, -1
	lines, err := reader.ReadAll()
	must(t, err)
	var samples []sample
	for _, line := range lines[1:] {
		text, err := os.ReadFile(filepath.Join(dir, line[0]))
		must(t, err)
		if !bytes.Contains(text, []byte("-----BEGIN")) {
			text = pkcs10test.Encode(text)
		}
		samples = append(samples, sample{line[0], line[1], text})
	}
	if len(samples) == 0 {
		t.Fatalf("no samples in %s", dir)
	}
	return samples
}

// ownSamples makes one request of each kind, and of each class of defect that a request of
// crypto/x509 can have.
func ownSamples(t *testing.T) []sample {
	t.Helper()
	good := pkcs10test.Request{Subject: pkix.Name{CommonName: "a.example.com"}, DNSNames: []string{"a.example.com"}}
	with := func(change func(r *pkcs10test.Request)) []byte {
		r := good
		change(&r)
		return r.PEM(t)
	}
	extension := func(value []byte, oid ...int) []byte {
		return with(func(r *pkcs10test.Request) { r.Extensions = []pkix.Extension{{Id: oid, Value: value}} })
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	return []sample{
		{"good", "accept", good.PEM(t)},
		{"an IP address", "accept", with(func(r *pkcs10test.Request) { r.IPs = []netip.Addr{netip.MustParseAddr("10.1.2.3")} })},
		{"a rich subject", "strip", with(func(r *pkcs10test.Request) { r.Subject.Organization = []string{"system:masters"} })},
		{"a key ID", "strip", extension([]byte{4, 2, 1, 2}, 2, 5, 29, 14)},
		{"a path to fetch from", "strip", extension([]byte{0x30, 0}, 1, 3, 6, 1, 5, 5, 7, 1, 1)},
		{"CA:TRUE", "strip", extension([]byte{0x30, 3, 1, 1, 0xff}, 2, 5, 29, 19)},
		{"every key usage", "strip", extension([]byte{3, 2, 0, 0xff}, 2, 5, 29, 15)},
		{"a wildcard", "reject", with(func(r *pkcs10test.Request) { r.DNSNames = []string{"*.example.com"} })},
		{"an email address", "reject", with(func(r *pkcs10test.Request) { r.Emails = []string{"a@example.com"} })},
		{"a URI", "reject", with(func(r *pkcs10test.Request) { r.URIs = []string{"spiffe://example.com/a"} })},
		{"the API server's name", "reject", with(func(r *pkcs10test.Request) { r.DNSNames = []string{"kubernetes.default.svc"} })},
		{"loopback", "reject", with(func(r *pkcs10test.Request) { r.IPs = []netip.Addr{netip.MustParseAddr("127.0.0.1")} })},
		{"the metadata service", "reject", with(func(r *pkcs10test.Request) { r.IPs = []netip.Addr{netip.MustParseAddr("169.254.169.254")} })},
		{"a common name of its own", "reject", with(func(r *pkcs10test.Request) { r.Subject.CommonName = "b.example.com" })},
		{"no name", "reject", pkcs10test.Request{}.PEM(t)},
		{"a NUL in the common name", "reject", with(func(r *pkcs10test.Request) { r.Subject.CommonName = "a.example.com\x00" })},
		{"an escape sequence", "reject", with(func(r *pkcs10test.Request) { r.Subject.CommonName = "\x1b[2Ja" })},
		{"a weak key", "reject", with(func(r *pkcs10test.Request) { r.Key = weak })},
		{"two blocks", "reject", append(good.PEM(t), good.PEM(t)...)},
		{"headers", "reject", bytes.Replace(good.PEM(t), []byte("REQUEST-----\n"), []byte("REQUEST-----\nA: b\n\n"), 1)},
	}
}
