package policy_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"
	"testing"
	"time"

	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// FuzzPolicy: no text breaks the reader, and what it takes decides without breaking.
func FuzzPolicy(f *testing.F) {
	for _, name := range policy.BuiltInNames() {
		text, _ := policy.BuiltIn(name)
		f.Add(string(text))
	}
	f.Add(language)
	request := newAsker("calico-system", "calico-node", "typha-client").request(f)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := policy.Parse([]byte(text), policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour})
		if err != nil {
			return
		}
		if g, ok := p.Decide(request).(*policy.Grant); ok && (g.Lifetime() <= 0 || g.Lifetime() > time.Hour) {
			t.Errorf("granted for %s", g.Lifetime())
		}
	})
}

// FuzzDecide: whatever a component asks for, it is granted nothing but its own names and its own
// address; and a refusal shows nothing that could break a terminal.
func FuzzDecide(f *testing.F) {
	f.Add("typha-client", "typha-client", "typha-client", []byte{10, 65, 0, 7})
	f.Add("typha-server", "typha-client", "*.typha-client", []byte{10, 65, 0, 8})
	f.Add("TYPHA-CLIENT", "typha-client\x00", "kubernetes", []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 65, 0, 7})
	p, key := builtIn(f, "calico"), pkcs10test.NewKey(f)
	own := []string{"typha-client"}
	f.Fuzz(func(t *testing.T, cn, one, other string, address []byte) {
		a := newAsker("calico-system", "calico-node", "typha-client")
		pem, err := rawRequest(key, cn, one, other, address)
		if err != nil {
			return // crypto/x509 does not make such a request
		}
		switch v := p.Decide(a.requestOf(pem)).(type) {
		case *policy.Grant:
			for _, name := range append(v.DNSNames(), v.CommonName()) {
				if name != "" && !slices.Contains(own, name) {
					t.Errorf("granted %q", name)
				}
			}
			for _, ip := range v.IPAddresses() {
				if ip != podIP {
					t.Errorf("granted %s", ip)
				}
			}
		case *policy.Refusal:
			if strings.ContainsFunc(v.String(), func(r rune) bool { return r < ' ' || r == 0x7f || r > 0x7e && r != '…' }) {
				t.Errorf("a refusal that is not plain text: %q", v.String())
			}
		}
	})
}

// rawRequest asks for two DNS names and an IP address, each just as its bytes are.
func rawRequest(key crypto.Signer, cn, one, other string, address []byte) ([]byte, error) {
	const dns, ip = 2, 7 // RFC 5280, section 4.2.1.6
	names, err := asn1.Marshal([]asn1.RawValue{
		{Class: asn1.ClassContextSpecific, Tag: dns, Bytes: []byte(one)},
		{Class: asn1.ClassContextSpecific, Tag: dns, Bytes: []byte(other)},
		{Class: asn1.ClassContextSpecific, Tag: ip, Bytes: address},
	})
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:         pkix.Name{CommonName: cn},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: names}},
	}, key)
	return pkcs10test.Encode(der), err
}
