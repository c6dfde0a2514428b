package policy_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"maps"
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
	request, facts := newAsker("calico-system", "calico-node", "typha-client").request(f)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := policy.Parse([]byte(text),
			policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour})
		if err != nil {
			return
		}
		if g, ok := p.Decide(request, facts).(*policy.Grant); ok &&
			(g.Lifetime() <= 0 || g.Lifetime() > time.Hour) {
			t.Errorf("granted for %s", g.Lifetime())
		}
	})
}

// FuzzDecide: whatever a component asks for, it is granted nothing but its own names and its own
// address; and a refusal shows nothing that could break a terminal.
func FuzzDecide(f *testing.F) {
	f.Add("typha-client", "typha-client", "typha-client", []byte{10, 65, 0, 7})
	f.Add("typha-server", "typha-client", "*.typha-client", []byte{10, 65, 0, 8})
	f.Add("TYPHA-CLIENT", "typha-client\x00", "kubernetes",
		[]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 65, 0, 7})
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
			for _, name := range append(v.DNSNames(), commonName(v)) {
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
			if strings.ContainsFunc(v.String(), func(r rune) bool {
				return r < ' ' || r == 0x7f || r > 0x7e
			}) {
				t.Errorf("a refusal that is not plain text: %q", v.String())
			}
		}
	})
}

// FuzzDerive: whoever asks for whatever, the derived names that are granted are the requester's
// own.
func FuzzDerive(f *testing.F) {
	f.Add("shop", "till", "till.shop.example.com", "spiffe://example.org/ns/shop/sa/till",
		"till@shop.example.com")
	f.Add("default", "kubernetes.default", "*.default.svc", "spiffe://example.org/ns/a/sa/b/../c",
		"a@b@c")
	f.Add("a", "b.c", "b.c.a.example.com", "spiffe://example.org/ns/a/sa/b.c", "b.c@a.example.com")
	p, key := parse(f, names), pkcs10test.NewKey(f)
	f.Fuzz(func(t *testing.T, namespace, account, dns, uri, email string) {
		pem, err := rawNames(key, map[int][]byte{2: []byte(dns), 6: []byte(uri), 1: []byte(email)})
		if err != nil {
			return // crypto/x509 does not make such a request
		}
		g, ok := p.Decide(newAsker(namespace, account, "-").requestOf(pem)).(*policy.Grant)
		if !ok {
			return
		}
		own := []string{
			account + "." + namespace + ".example.com", "*." + namespace + ".svc",
			"*.apps.example.com",
			"spiffe://example.org/ns/" + namespace + "/sa/" + account,
			"https://fixed.example.com/a",
			account + "@" + namespace + ".example.com", "ops@example.com",
		}
		for _, name := range slices.Concat(g.DNSNames(), g.URIs(), g.EmailAddresses()) {
			wide := strings.HasSuffix(name, ".wide.example.com") && !strings.HasPrefix(name, "*")
			if !slices.Contains(own, name) && !wide || name == "*.default.svc" {
				t.Errorf("%s/%s was granted %q", namespace, account, name)
			}
		}
	})
}

// rawRequest asks for two DNS names and an IP address, each just as its bytes are.
func rawRequest(key crypto.Signer, cn, one, other string, address []byte) ([]byte, error) {
	return raw(key, cn,
		[]asn1.RawValue{general(2, []byte(one)), general(2, []byte(other)), general(7, address)})
}

// rawNames asks for a name of each kind, by its tag, just as its bytes are.
func rawNames(key crypto.Signer, byTag map[int][]byte) ([]byte, error) {
	var all []asn1.RawValue
	for _, tag := range slices.Sorted(maps.Keys(byTag)) {
		all = append(all, general(tag, byTag[tag]))
	}
	return raw(key, "", all)
}

// general is a GeneralName (RFC 5280, section 4.2.1.6).
func general(tag int, content []byte) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: content}
}

func raw(key crypto.Signer, cn string, names []asn1.RawValue) ([]byte, error) {
	san, err := asn1.Marshal(names)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:         pkix.Name{CommonName: cn},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san}},
	}, key)
	return pkcs10test.Encode(der), err
}
