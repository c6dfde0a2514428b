package issuer

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// keptAndSPIFFE grants a kept subject and a URI whose host has one label.
const keptAndSPIFFE = `
version: 1
rules:
  - name: kept
    from: {serviceAccounts: [edge/gw]}
    grant:
      dnsNames: [gw.example.com]
      subject: kept
      ipAddresses: [pod]
      keys: [ecdsa-p256, rsa-2048]
      usages: [server auth, client auth, digital signature, key encipherment, key agreement]
  - name: spiffe
    from: {serviceAccounts: [edge/gw]}
    grant:
      uris: ["spiffe://prod/ns/{namespace}/sa/{serviceAccount}"]
      ipAddresses: [pod]
      keys: [ecdsa-p256]
      usages: [server auth, client auth, digital signature, key encipherment, key agreement]
`

// decide gives the verdict on what a pod of edge/gw asks for, with the lints.
func decide(t *testing.T, ca *CA, p *policy.Policy, usages []policy.Usage,
	asks pkcs10test.Request) policy.Verdict {
	t.Helper()
	return decideRequest(ca, p, "u", usages, asks.PEM(t))
}

func decideRequest(ca *CA, p *policy.Policy, uid string, usages []policy.Usage,
	text []byte) policy.Verdict {
	r := policy.NewRequest(policy.Submission{
		UID: uid, PEM: text, Usages: usages,
		Requester: policy.Requester{
			Username: "system:serviceaccount:edge:gw",
			Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:edge"},
			Extra: map[string][]string{"authentication.kubernetes.io/pod-name": {"p"},
				"authentication.kubernetes.io/pod-uid": {"pu"}},
		},
	})
	query, _ := r.PodQuery()
	facts := query.Found(policy.Pod{Namespace: "edge", Name: "p", UID: "pu", ServiceAccount: "gw",
		IPs: []netip.Addr{podIP}})
	verdict := p.Decide(r, facts)
	if g, granted := verdict.(*policy.Grant); granted {
		if refusal := Lint(ca, g); refusal != nil {
			return refusal
		}
	}
	return verdict
}

// What real clients and private CAs use is issued; what RFC 5280 forbids is refused with its field.
func TestWhatRealClientsAskFor(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must.OK(t, err)
	made := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	i, p := made.issuer(t), parsePolicy(t, keptAndSPIFFE)
	kubernetes := []policy.Usage{policy.DigitalSignature, policy.KeyEncipherment, policy.ClientAuth}
	gw := []string{"gw.example.com"}
	for name, c := range map[string]struct {
		asks   pkcs10test.Request
		usages []policy.Usage
		field  string // of the refusal
	}{
		"an RSA client": {pkcs10test.Request{Key: rsaKey, DNSNames: gw}, kubernetes, ""},
		"SPIFFE with one label": {pkcs10test.Request{URIs: []string{"spiffe://prod/ns/edge/sa/gw"}},
			kubernetes, ""},
		"a blank at the end": {pkcs10test.Request{DNSNames: gw,
			Subject: pkix.Name{Organization: []string{"Example "}}}, kubernetes, ""},
		"HTML in the subject": {pkcs10test.Request{DNSNames: gw,
			Subject: pkix.Name{Organization: []string{"A &amp; B"}}}, kubernetes, ""},
		"a long postal code": {
			pkcs10test.Request{DNSNames: gw,
				Subject: pkix.Name{PostalCode: []string{"01234567890123456789"}}}, kubernetes,
			"request.subject.postalCode",
		},
		"an EKU without its key usage": {
			pkcs10test.Request{Key: rsaKey, DNSNames: gw},
			[]policy.Usage{policy.KeyEncipherment, policy.ClientAuth}, "spec.usages",
		},
	} {
		switch v := decide(t, i.CA(), p, c.usages, c.asks).(type) {
		case *policy.Grant:
			if _, instead, err := i.Prepare(t.Context(), v); c.field != "" || instead != nil ||
				err != nil {
				t.Errorf("%s: granted; %v, %v", name, instead, err)
			}
		case *policy.Refusal:
			if c.field == "" || v.Reasons[0].Field != c.field {
				t.Errorf("%s: %s", name, v)
			}
		}
	}
}

type namePart struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

// rawName encodes a name by hand.
func rawName(t *testing.T, rdns [][]namePart) []byte {
	t.Helper()
	sets := []asn1.RawValue{}
	for _, rdn := range rdns {
		der, err := asn1.MarshalWithParams(rdn, "set")
		must.OK(t, err)
		sets = append(sets, asn1.RawValue{FullBytes: der})
	}
	return must.Value(asn1.Marshal(sets))(t)
}

// Names of real CAs are taken and issue; a CA without a name is refused when it is loaded.
func TestEveryCAThatLoadsCanIssue(t *testing.T) {
	utf8 := func(s string) asn1.RawValue {
		return asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(s)}
	}
	cn, c, serial := asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.ObjectIdentifier{2, 5, 4, 6},
		asn1.ObjectIdentifier{2, 5, 4, 5}
	for what, one := range map[string]struct {
		name    [][]namePart
		refused string
	}{
		"country as UTF8String":        {[][]namePart{{{c, utf8("DE")}}, {{cn, utf8("CA")}}}, ""},
		"blank before the common name": {[][]namePart{{{cn, utf8(" CA")}}}, ""},
		"blank behind the common name": {[][]namePart{{{cn, utf8("CA ")}}}, ""},
		"no name":                      {nil, "has no name"},
		"two attributes in one RDN":    {[][]namePart{{{cn, utf8("CA")}, {serial, utf8("42")}}}, ""},
	} {
		t.Run(what, func(t *testing.T) {
			key := pkcs10test.NewKey(t)
			template := &x509.Certificate{
				SerialNumber: big.NewInt(1), RawSubject: rawName(t, one.name),
				NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
				KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
				SubjectKeyId: []byte{1},
			}
			ca, err := ParseCA(encodePEM(create(t, template, nil, &key.PublicKey, key).Raw))
			if one.refused != "" || err != nil {
				if err == nil || one.refused == "" || !strings.Contains(err.Error(), one.refused) {
					t.Errorf("%v; want %q", err, one.refused)
				}
				return
			}
			i, err := New(Authority{CA: ca, Key: softKey{key: key}}, newJournal(t, ca))
			must.OK(t, err)
			if _, instead, err := i.Prepare(t.Context(),
				grant(t, pkcs10test.NewKey(t), 0)); instead != nil || err != nil {
				t.Errorf("no certificate can be issued: %v, %v", instead, err)
			}
		})
	}
}

// Chains that Go or OpenSSL refuse when the root alone is trusted are refused when they are loaded.
func TestChainsThatClientsRefuse(t *testing.T) {
	critical := pkix.Extension{Id: []int{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true,
		Value: []byte{5, 0}}
	explicitPolicy := pkix.Extension{Id: []int{2, 5, 29, 36}, Critical: true,
		Value: []byte{0x30, 3, 0x80, 1, 0}}
	directory := pkix.Extension{Id: oidNameConstraints,
		Value: []byte{0x30, 8, 0xa0, 6, 0x30, 4, 0xa4, 2, 0x30, 0}}
	otherKey := pkix.Extension{Id: oidAuthorityKeyID, Value: []byte{0x30, 3, 0x80, 1, 9}}
	otherSerial := pkix.Extension{Id: oidAuthorityKeyID, Value: []byte{0x30, 3, 0x82, 1, 9}}
	for name, c := range map[string]struct {
		want  string
		spoil func(*threeTier)
	}{
		"client auth alone": {"extendedKeyUsage of CN=ca", func(h *threeTier) {
			h.ca.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}},
		"any extended key usage": {"extendedKeyUsage of CN=middle", func(h *threeTier) {
			h.middle.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
		}},
		"a critical extension": {"critical extensions", func(h *threeTier) {
			h.middle.ExtraExtensions = []pkix.Extension{critical}
		}},
		"a policy for every leaf": {"no certificate under CN=ca would be accepted",
			func(h *threeTier) { h.middle.ExtraExtensions = []pkix.Extension{explicitPolicy} }},
		"constraints of directory": {"constrains names other than", func(h *threeTier) {
			h.root.ExtraExtensions = []pkix.Extension{directory}
		}},
		"a root of path length 0": {"allows a path length of 0", func(h *threeTier) {
			h.root.MaxPathLen, h.root.MaxPathLenZero = 0, true
		}},
		"another key identifier": {"names another key in authorityKeyIdentifier",
			func(h *threeTier) { h.ca.ExtraExtensions = []pkix.Extension{otherKey} }},
		"another serial number": {"names the serial number", func(h *threeTier) {
			h.ca.ExtraExtensions = []pkix.Extension{otherSerial}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newThreeTier(t)
			c.spoil(h)
			chain := h.chain(t)
			if _, err := ParseCA(chain.PEM()); err == nil ||
				!strings.Contains(err.Error(), c.want) {
				t.Errorf("ParseCA: %v; want %q", err, c.want)
			}
			requireFault(t, chain, h.caKey.Public(), c.want)
		})
	}
}

// The root's name in another encoding than the CA has it is found; crypto/x509 compares bytes.
func TestIssuerInAnotherEncoding(t *testing.T) {
	h := newThreeTier(t)
	cn := asn1.ObjectIdentifier{2, 5, 4, 3}
	encoded := func(tag int) []byte {
		return rawName(t, [][]namePart{{{cn, asn1.RawValue{Tag: tag, Bytes: []byte("root")}}}})
	}
	h.root.RawSubject = encoded(asn1.TagUTF8String)
	chain := h.chain(t)
	h.root.RawSubject = encoded(asn1.TagPrintableString)
	chain[2] = create(t, h.root, nil, h.rootKey.Public(), h.rootKey)
	requireFault(t, chain, h.caKey.Public(), "names its issuer in another encoding")
}

// A root's own signature over SHA-1 does not matter, and the root is never sent. SHA-1 elsewhere is
// refused.
func TestRootWithSHA1(t *testing.T) {
	h := newThreeTier(t)
	chain := h.chain(t)
	root := append([]byte{}, chain[2].Raw...)
	sha256 := []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2}
	sha1 := []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1}
	root = replaceOID(t, root, sha256, sha1)
	old, err := x509.ParseCertificate(root)
	if err != nil || old.SignatureAlgorithm != x509.ECDSAWithSHA1 {
		t.Fatal(old, err)
	}
	chain[2] = old
	ca, err := ParseCA(chain.PEM())
	must.OK(t, err)
	if err := chain.Check(h.caKey.Public(), time.Now()); err != nil {
		t.Error(err)
	}
	sent, err := ReadChain(ca.intermediates)
	if err != nil || len(sent) != 2 || !ca.HasRoot() {
		t.Errorf("%d certificates are sent, %v", len(sent), err)
	}
	spoiled, err := x509.ParseCertificate(replaceOID(t, chain[1].Raw, sha256, sha1))
	must.OK(t, err)
	if _, err := ParseCA(Chain{chain[0], spoiled, old}.PEM()); err == nil ||
		!strings.Contains(err.Error(), "which can be forged") {
		t.Errorf("SHA-1 in the chain: %v", err)
	}
	partial, err := ParseCA(Chain{chain[0], chain[1]}.PEM())
	if err != nil || partial.HasRoot() {
		t.Errorf("without a root: %v", err)
	}
}

// replaceOID names another signature algorithm in a certificate, whose signature is then wrong.
func replaceOID(t *testing.T, der, from, to []byte) []byte {
	t.Helper()
	var c certificate
	if _, err := asn1.Unmarshal(der, &c); err != nil {
		t.Fatal(err)
	}
	var parts []asn1.RawValue
	if _, err := asn1.Unmarshal(c.TBS.FullBytes, &parts); err != nil {
		t.Fatal(err)
	}
	algorithm, err :=
		asn1.Marshal(struct{ ID asn1.RawValue }{asn1.RawValue{Tag: asn1.TagOID, Bytes: to}})
	if err != nil || !strings.Contains(string(parts[2].FullBytes), string(from)) {
		t.Fatal("the algorithm is another one", err)
	}
	parts[2] = asn1.RawValue{FullBytes: algorithm}
	tbs, err := asn1.Marshal(parts)
	must.OK(t, err)
	forged := certificate{asn1.RawValue{FullBytes: tbs}, parts[2], c.Signature}
	return must.Value(asn1.Marshal(forged))(t)
}

// A certificate that cannot be read is never passed over.
func TestEveryBlockOfTheFileIsRead(t *testing.T) {
	text := string(newThreeTier(t).chain(t).PEM())
	const mark = "\ufeff"
	for name, c := range map[string]struct{ text, refused string }{
		"a byte order mark":      {mark + text, ""},
		"a mark in each":         {strings.ReplaceAll(text, "-----BEGIN", mark+"-----BEGIN"), ""},
		"text before":            {"subject=CN=ca\n" + text, ""},
		"Windows line ends":      {strings.ReplaceAll(text, "\n", "\r\n"), ""},
		"UTF-16":                 {"\xff\xfe" + text, "UTF-16"},
		"text on the BEGIN line": {"ca: " + text, "3 PEM blocks, of which 2 can be read"},
		"a zero-width space":     {"\u200b" + text, "3 PEM blocks, of which 2 can be read"},
		"a block cut in the file": {strings.Replace(text, "-----END CERTIFICATE-----\n", "", 1),
			"PEM blocks, of which"},
	} {
		ca, err := ParseCA([]byte(c.text))
		switch {
		case c.refused == "" && (err != nil || len(ca.chain()) != 3):
			t.Errorf("%s: %v", name, err)
		case c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)):
			t.Errorf("%s: %v; want %q", name, err, c.refused)
		}
	}
}

// A certificate that takes the place of another keeps its key identifier and its constraints.
func TestReplacedCertificateKeepsItsConstraints(t *testing.T) {
	key := pkcs10test.NewKey(t)
	template := func(change func(*x509.Certificate)) *CA {
		t.Helper()
		cert := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"},
			SubjectKeyId: []byte{1}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
			BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
			PermittedDNSDomainsCritical: true, PermittedDNSDomains: []string{"example.com"},
			ExcludedDNSDomains: []string{"a.example.com"},
		}
		change(cert)
		return must.Value(ParseCA(encodePEM(create(t, cert, nil, &key.PublicKey, key).Raw)))(t)
	}
	before := template(func(*x509.Certificate) {})
	for name, c := range map[string]struct {
		change  func(*x509.Certificate)
		refused string
	}{
		"renewed": {func(c *x509.Certificate) { c.SerialNumber = big.NewInt(2) }, ""},
		"narrower": {func(c *x509.Certificate) {
			c.PermittedDNSDomains = []string{"b.example.com"}
		}, ""},
		"more excluded": {func(c *x509.Certificate) {
			c.ExcludedDNSDomains = append(c.ExcludedDNSDomains, "c.example.com")
		}, ""},
		"another key ID": {func(c *x509.Certificate) {
			c.SubjectKeyId = []byte{2}
		}, "subjectKeyIdentifier"},
		"wider": {func(c *x509.Certificate) {
			c.PermittedDNSDomains = []string{"com"}
		}, "loses a constraint"},
		"nothing permitted": {func(c *x509.Certificate) {
			c.PermittedDNSDomains = nil
		}, "loses a constraint"},
		"nothing excluded": {func(c *x509.Certificate) {
			c.ExcludedDNSDomains = nil
		}, "loses a constraint"},
		"path length unlimited": {func(c *x509.Certificate) {
			c.MaxPathLenZero = false
		}, "the path length of 0"},
	} {
		err := before.replaceableBy(template(c.change))
		if c.refused == "" && err != nil ||
			c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)) {
			t.Errorf("%s: %v; want %q", name, err, c.refused)
		}
	}
}
