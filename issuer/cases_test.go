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
func decide(t *testing.T, ca *CA, p *policy.Policy, usages []policy.Usage, asks pkcs10test.Request) policy.Verdict {
	t.Helper()
	r := policy.NewRequest(policy.Submission{
		UID: "u", PEM: asks.PEM(t), Usages: usages,
		Requester: policy.Requester{
			Username: "system:serviceaccount:edge:gw", Groups: []string{"system:serviceaccounts", "system:serviceaccounts:edge"},
			Extra: map[string][]string{"authentication.kubernetes.io/pod-name": {"p"}, "authentication.kubernetes.io/pod-uid": {"pu"}},
		},
	})
	r.Pods = []policy.Pod{{Namespace: "edge", Name: "p", UID: "pu", ServiceAccount: "gw", IPs: []netip.Addr{podIP}}}
	verdict := policy.Examined(p.Decide(r))
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
	if err != nil {
		t.Fatal(err)
	}
	made := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	i, p := made.issuer(t), parsePolicy(t, keptAndSPIFFE)
	kubernetes := []policy.Usage{policy.DigitalSignature, policy.KeyEncipherment, policy.ClientAuth}
	gw := []string{"gw.example.com"}
	for name, c := range map[string]struct {
		asks   pkcs10test.Request
		usages []policy.Usage
		field  string // of the refusal
	}{
		"an RSA client":         {pkcs10test.Request{Key: rsaKey, DNSNames: gw}, kubernetes, ""},
		"SPIFFE with one label": {pkcs10test.Request{URIs: []string{"spiffe://prod/ns/edge/sa/gw"}}, kubernetes, ""},
		"a blank at the end":    {pkcs10test.Request{DNSNames: gw, Subject: pkix.Name{Organization: []string{"Example "}}}, kubernetes, ""},
		"HTML in the subject":   {pkcs10test.Request{DNSNames: gw, Subject: pkix.Name{Organization: []string{"A &amp; B"}}}, kubernetes, ""},
		"a long postal code": {
			pkcs10test.Request{DNSNames: gw, Subject: pkix.Name{PostalCode: []string{"01234567890123456789"}}}, kubernetes, "request.subject.postalCode",
		},
		"an EKU without its key usage": {
			pkcs10test.Request{Key: rsaKey, DNSNames: gw}, []policy.Usage{policy.KeyEncipherment, policy.ClientAuth}, "spec.usages",
		},
	} {
		switch v := decide(t, i.CA(), p, c.usages, c.asks).(type) {
		case *policy.Grant:
			if refusal, err := i.Reserve(t.Context(), v); c.field != "" || refusal != nil || err != nil {
				t.Errorf("%s: granted; %v, %v", name, refusal, err)
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
		if err != nil {
			t.Fatal(err)
		}
		sets = append(sets, asn1.RawValue{FullBytes: der})
	}
	raw, err := asn1.Marshal(sets)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Names of real CAs are taken and issue; a CA without a name is refused when it is loaded.
func TestEveryCAThatLoadsCanIssue(t *testing.T) {
	utf8 := func(s string) asn1.RawValue { return asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(s)} }
	cn, c, serial := asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.ObjectIdentifier{2, 5, 4, 6}, asn1.ObjectIdentifier{2, 5, 4, 5}
	for what, one := range map[string]struct {
		name    [][]namePart
		refused string
	}{
		"country as UTF8String":        {[][]namePart{{{c, utf8("DE")}}, {{cn, utf8("CA")}}}, ""},
		"blank before the common name": {[][]namePart{{{cn, utf8(" CA")}}}, ""},
		"blank behind the common name": {[][]namePart{{{cn, utf8("CA ")}}}, ""},
		"two attributes in one RDN":    {[][]namePart{{{cn, utf8("CA")}, {serial, utf8("42")}}}, ""},
	} {
		t.Run(what, func(t *testing.T) {
			key := pkcs10test.NewKey(t)
			template := &x509.Certificate{
				SerialNumber: big.NewInt(1), RawSubject: rawName(t, one.name), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
				KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, SubjectKeyId: []byte{1},
			}
			ca, err := ParseCA(encodePEM(create(t, template, nil, &key.PublicKey, key).Raw))
			if one.refused != "" || err != nil {
				if err == nil || one.refused == "" || !strings.Contains(err.Error(), one.refused) {
					t.Errorf("%v; want %q", err, one.refused)
				}
				return
			}
			i, err := New(ca, softKey{key: key}, 0, newJournal(t, ca))
			if err != nil {
				t.Fatal(err)
			}
			if refusal, err := i.Reserve(t.Context(), grant(t, pkcs10test.NewKey(t), 0)); refusal != nil || err != nil {
				t.Errorf("no certificate can be issued: %v, %v", refusal, err)
			}
		})
	}
}
