package issuer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// softKey is a key in memory; what tokens do is tested with tokens.
type softKey struct {
	key   crypto.Signer
	fault error
}

func (k softKey) Public() crypto.PublicKey { return k.key.Public() }

func (k softKey) Ready(context.Context) error { return k.fault }

func (k softKey) Signer(context.Context) crypto.Signer { return k }

func (k softKey) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.fault != nil {
		return nil, k.fault
	}
	return k.key.Sign(r, digest, opts)
}

// aCA makes a root, and below it an intermediate that issues.
type aCA struct {
	root, issuing *x509.Certificate
	key           *ecdsa.PrivateKey
	chain         []byte // PEM, the issuing one first
}

func newCA(t testing.TB, notBefore, notAfter time.Time) aCA {
	t.Helper()
	rootKey, key := pkcs10test.NewKey(t), pkcs10test.NewKey(t)
	template := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: notBefore, NotAfter: notAfter,
			KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
		}
	}
	root := create(t, template(1, "root"), nil, &rootKey.PublicKey, rootKey)
	issuing := create(t, template(2, "issuing"), root, &key.PublicKey, rootKey)
	return aCA{root, issuing, key, slices.Concat(encodePEM(issuing.Raw), encodePEM(root.Raw))}
}

func create(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey,
	signer crypto.Signer) *x509.Certificate {
	t.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	must.OK(t, err)
	return must.Value(x509.ParseCertificate(der))(t)
}

func (c aCA) issuer(t testing.TB) *Issuer {
	t.Helper()
	ca, err := ParseCA(c.chain)
	must.OK(t, err)
	return must.Value(New(Authority{CA: ca, Key: softKey{key: c.key}}, newJournal(t, ca)))(t)
}

// newJournal is a journal of the CA's, that ends with the test.
func newJournal(t testing.TB, ca *CA) *journal.Writer {
	t.Helper()
	j, err := journal.Open(t.TempDir(), journal.Options{Version: "test", CA: ca.Certificate()})
	must.OK(t, err)
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j
}

const aPolicy = `
version: 1
rules:
  - name: all
    from:
      serviceAccounts: [ns/sa]
    grant:
      dnsNames: [one, two]
      ipAddresses: [pod]
      keys: [rsa-2048, ecdsa-p256]
      usages: [server auth, client auth, digital signature, key encipherment, key agreement]
`

func parsePolicy(t testing.TB, text string) *policy.Policy {
	t.Helper()
	return must.Value(policy.Parse([]byte(text),
		policy.Options{ClusterDomain: "cluster.local", MaxLifetime: 8760 * time.Hour}))(t)
}

// grant has the policy grant a request, as it is in life.
func grant(t testing.TB, key crypto.Signer, lifetime time.Duration) *policy.Grant {
	t.Helper()
	return grantTo(t, parsePolicy(t, aPolicy), "ns:sa", "pu", "u", lifetime, oneAndTwo(key))
}

// oneAndTwo asks for the names that aPolicy grants, and for a subject that it does not.
func oneAndTwo(key crypto.Signer) pkcs10test.Request {
	return pkcs10test.Request{
		Key: key, Subject: pkix.Name{CommonName: "one", Organization: []string{"system:masters"}},
		DNSNames: []string{"one", "two"}, IPs: []netip.Addr{podIP},
	}
}

var podIP = netip.MustParseAddr("10.0.0.7")

// grantTo has a policy grant what a pod of the service account NAMESPACE:NAME asks for.
func grantTo(t testing.TB, p *policy.Policy, account, podUID, uid string, lifetime time.Duration,
	asks pkcs10test.Request) *policy.Grant {
	t.Helper()
	namespace, name, _ := strings.Cut(account, ":")
	r := policy.NewRequest(policy.Submission{
		UID: uid, Name: "name-" + uid, SignerName: "example.com/s", Lifetime: lifetime,
		PEM: asks.PEM(t),
		Usages: []policy.Usage{policy.ServerAuth, policy.ClientAuth, policy.DigitalSignature,
			policy.KeyAgreement, policy.KeyEncipherment},
		Requester: policy.Requester{
			Username: "system:serviceaccount:" + account,
			Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace},
			Extra: map[string][]string{"authentication.kubernetes.io/pod-name": {"p"},
				"authentication.kubernetes.io/pod-uid": {podUID}},
		},
	})
	query, _ := r.PodQuery()
	verdict := p.Decide(r,
		query.Found(policy.Pod{Namespace: namespace, Name: "p", UID: podUID, ServiceAccount: name,
			IPs: []netip.Addr{podIP}}))
	g, ok := verdict.(*policy.Grant)
	if !ok {
		t.Fatalf("the request was not granted: %v", verdict)
	}
	return g
}

// answered is a verdict that takes a grant's place, as an error.
type answered struct{ verdict policy.Verdict }

func (a answered) Error() string { return fmt.Sprint(a.verdict) }

// tryIssue prepares the certificate and issues it, as the controller does.
func tryIssue(t testing.TB, i *Issuer, g *policy.Grant) ([]byte, error) {
	t.Helper()
	prepared, instead, err := i.Prepare(t.Context(), g)
	switch {
	case err != nil:
		return nil, err
	case instead != nil:
		return nil, answered{instead}
	}
	return prepared.Issue(t.Context())
}

// prepare prepares a certificate that can be issued.
func prepare(t testing.TB, i *Issuer, g *policy.Grant) *Prepared {
	t.Helper()
	prepared, instead, err := i.Prepare(t.Context(), g)
	if instead != nil || err != nil {
		t.Fatal(instead, err)
	}
	return prepared
}

// over returns the budget that a verdict waits for, or nil.
func over(v policy.Verdict) *policy.OverBudget {
	if waiting, is := v.(*policy.Waiting); is {
		return waiting.Budget
	}
	return nil
}

func issue(t testing.TB, i *Issuer, g *policy.Grant) []*x509.Certificate {
	t.Helper()
	text, err := tryIssue(t, i, g)
	must.OK(t, err)
	return must.Value(parseCertificates(text))(t)
}

func TestCertificateIsBuiltFromTheGrant(t *testing.T) {
	ca := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(10000*time.Hour))
	key := pkcs10test.NewKey(t)
	certs := issue(t, ca.issuer(t), grant(t, key, time.Hour))
	leaf := certs[0]
	if len(certs) != 2 || !certs[1].Equal(ca.issuing) {
		t.Errorf(
			"the chain has %d certificates; want the leaf and the issuing CA, without the root",
			len(certs))
	}
	if got := leaf.Subject.String(); got != "CN=one" {
		t.Errorf("subject %s: only the common name comes from the grant", got)
	}
	if !slices.Equal(leaf.DNSNames, []string{"one", "two"}) || len(leaf.IPAddresses) != 1 ||
		leaf.IPAddresses[0].String() != "10.0.0.7" {
		t.Errorf("names %v %v", leaf.DNSNames, leaf.IPAddresses)
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyAgreement {
		t.Errorf("key usage %b: an ECDSA key signs and agrees", leaf.KeyUsage)
	}
	if !slices.Equal(leaf.ExtKeyUsage,
		[]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) {
		t.Errorf("extended key usage %v", leaf.ExtKeyUsage)
	}
	if !leaf.BasicConstraintsValid || leaf.IsCA {
		t.Error("basicConstraints must say CA:FALSE")
	}
	if len(leaf.SubjectKeyId) != 20 || !slices.Equal(leaf.AuthorityKeyId, ca.issuing.SubjectKeyId) {
		t.Errorf("SKI %x, AKI %x", leaf.SubjectKeyId, leaf.AuthorityKeyId)
	}
	// the journal's ID, and 128 random bits
	if bits := leaf.SerialNumber.BitLen(); leaf.SerialNumber.Sign() <= 0 || bits > 160 ||
		bits <= 128 {
		t.Errorf("serial number of %d bits", bits)
	}
	if got := leaf.NotAfter.Sub(leaf.NotBefore); got != time.Hour+Backdate {
		t.Errorf("lifetime %s", got)
	}
	roots, middle := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(ca.root)
	middle.AddCert(certs[1])
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: middle,
		DNSName: "two"}); err != nil {
		t.Error(err)
	}
}

// everyKind is a policy of names of every kind.
const everyKind = `
version: 1
rules:
  - name: all
    from: {serviceAccounts: [ns/sa]}
    grant:
      subject: kept
      dnsNames: ["*.apps.example.com"]
      uris: ["spiffe://example.org/ns/{namespace}/sa/{serviceAccount}"]
      emailAddresses: [ops@example.com]
      keys: [ecdsa-p256]
      usages: [server auth, client auth, digital signature, key encipherment, key agreement]
`

func TestEveryKindOfNameIsCertified(t *testing.T) {
	dc := pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25},
		Value: "com"}
	asks := pkcs10test.Request{
		Subject: pkix.Name{Organization: []string{"Exämple"}, Country: []string{"CH"},
			ExtraNames: []pkix.AttributeTypeAndValue{dc}},
		DNSNames: []string{"*.apps.example.com"},
		URIs:     []string{"spiffe://example.org/ns/ns/sa/sa"}, Emails: []string{"ops@example.com"},
	}
	ca := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	leaf := issue(t, ca.issuer(t),
		grantTo(t, parsePolicy(t, everyKind), "ns:sa", "pu", "u", 0, asks))[0]
	if !slices.Equal(leaf.DNSNames, asks.DNSNames) ||
		!slices.Equal(leaf.EmailAddresses, asks.Emails) || len(leaf.URIs) != 1 ||
		leaf.URIs[0].String() != asks.URIs[0] {
		t.Errorf("names %v %v %v", leaf.DNSNames, leaf.EmailAddresses, leaf.URIs)
	}
	if !slices.Equal(leaf.Subject.Organization, asks.Subject.Organization) ||
		!slices.Equal(leaf.Subject.Country, asks.Subject.Country) || len(leaf.Subject.Names) != 3 {
		t.Errorf("subject %s", leaf.Subject)
	}
	if ia5 := []byte{asn1.TagIA5String, 3, 'c', 'o', 'm'}; !bytes.Contains(leaf.RawSubject, ia5) {
		t.Errorf("the domain component is no IA5String: %x", leaf.RawSubject)
	}
}

func TestRSAKeyEnciphers(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must.OK(t, err)
	ca := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	leaf := issue(t, ca.issuer(t), grant(t, key, 0))[0]
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment {
		t.Errorf("key usage %b", leaf.KeyUsage)
	}
}

func TestCertificateStaysWithinTheCA(t *testing.T) {
	begin, end := time.Now().Add(-time.Minute).Truncate(time.Second),
		time.Now().Add(time.Hour).Truncate(time.Second)
	leaf := issue(t, newCA(t, begin, end).issuer(t), grant(t, pkcs10test.NewKey(t), 0))[0]
	if !leaf.NotBefore.Equal(begin) || !leaf.NotAfter.Equal(end) {
		t.Errorf("valid from %s to %s; the CA's is %s to %s", leaf.NotBefore, leaf.NotAfter,
			begin, end)
	}
}

func TestCAOutsideItsDatesIssuesNothing(t *testing.T) {
	for words, ca := range map[string]aCA{
		"expired":          newCA(t, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)),
		"not valid before": newCA(t, time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)),
	} {
		i := ca.issuer(t)
		_, err := tryIssue(t, i, grant(t, pkcs10test.NewKey(t), 0))
		for _, err := range []error{err, i.Ready(t.Context())} {
			if err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("%v; want %q", err, words)
			}
		}
	}
}

func TestFaultOfTheKeyIsAFault(t *testing.T) {
	ca := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	i := ca.issuer(t)
	gone := errors.New("the token is gone")
	i.authorities.inForce.Load().Key = softKey{key: ca.key, fault: gone}
	if err := i.Ready(t.Context()); !errors.Is(err, gone) {
		t.Errorf("ready: %v", err)
	}
	if _, err := tryIssue(t, i, grant(t, pkcs10test.NewKey(t), 0)); !errors.Is(err, gone) {
		t.Errorf("issue: %v", err)
	}
}

func TestNewRefusesAForeignKeyOrAlgorithm(t *testing.T) {
	ca, err := ParseCA(newCA(t, time.Now(), time.Now().Add(time.Hour)).chain)
	must.OK(t, err)
	if _, err := New(Authority{CA: ca, Key: softKey{key: pkcs10test.NewKey(t)}}, nil); err == nil ||
		!strings.Contains(err.Error(), "does not belong to the CA certificate") {
		t.Errorf("a foreign key: %v", err)
	}
	own := newCA(t, time.Now(), time.Now().Add(time.Hour))
	ca, _ = ParseCA(own.chain)
	if _, err := New(Authority{ca, softKey{key: own.key}, x509.SHA256WithRSA}, nil); err == nil ||
		!strings.Contains(err.Error(), "ECDSAWithSHA256") {
		t.Errorf("a foreign algorithm: %v", err)
	}
}

func TestParseCARefuses(t *testing.T) {
	ca, other := newCA(t, time.Now(), time.Now().Add(time.Hour)),
		newCA(t, time.Now(), time.Now().Add(time.Hour))
	key := pkcs10test.NewKey(t)
	leaf := create(t,
		&x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "leaf"}},
		ca.issuing, &key.PublicKey, ca.key)
	for want, text := range map[string][]byte{
		"no certificate": nil,
		"not PEM":        []byte("hello"),
		"PRIVATE KEY":    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"}),
		"is not a CA's":  encodePEM(leaf.Raw),
		"is not by the key of CN=root": slices.Concat(encodePEM(ca.issuing.Raw),
			encodePEM(other.root.Raw)),
	} {
		if _, err := ParseCA(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}

func TestDefaultAlgorithmFollowsTheKey(t *testing.T) {
	for curve, want := range map[elliptic.Curve]x509.SignatureAlgorithm{
		elliptic.P256(): x509.ECDSAWithSHA256, elliptic.P384(): x509.ECDSAWithSHA384,
		elliptic.P521(): x509.ECDSAWithSHA512,
	} {
		if got := DefaultAlgorithm(&ecdsa.PublicKey{Curve: curve}); got != want {
			t.Errorf("%s: %s, want %s", curve.Params().Name, got, want)
		}
	}
	for _, name := range AlgorithmNames() {
		if a, err := ParseAlgorithm(name); err != nil || AlgorithmName(a) != name {
			t.Errorf("%s: %v %v", name, a, err)
		}
	}
}
