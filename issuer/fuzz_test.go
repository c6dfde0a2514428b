package issuer

import (
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"testing"
	"time"

	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

const anything = `
version: 1
budget: {total: 10000000, perNamespace: 100%, perServiceAccount: 100%}
rules:
  - name: all
    from: {users: ["*"], pod: none}
    grant:
      subject: kept
      dnsNames: [{pattern: "**"}]
      commonNames: [fixed]
      uris: [spiffe://example.org/a, https://example.com]
      emailAddresses: [a@example.com]
      keys: [ecdsa-p256]
      usages: [digital signature]
`

// FuzzIssue: whatever is granted, the certificate says just that when it is read again.
func FuzzIssue(f *testing.F) {
	f.Add("fixed", "Example", "a.example.com", "spiffe://example.org/a", "a@example.com")
	f.Add("", "Ex\u00e4mple, O=system:masters", "A.example.com", "https://example.com", "")
	p, key := parsePolicy(f, anything), pkcs10test.NewKey(f)
	i := newCA(f, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)).issuer(f)
	f.Fuzz(func(t *testing.T, cn, organization, dns, uri, email string) {
		var names []asn1.RawValue
		for tag, text := range map[int]string{1: email, 2: dns, 6: uri} {
			if text != "" {
				names = append(names,
					asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(text)})
			}
		}
		san, err := asn1.Marshal(names)
		if err != nil {
			return
		}
		pem, err := pkcs10test.Request{
			Key: key, Subject: pkix.Name{CommonName: cn, Organization: []string{organization}},
			Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san}},
		}.TryPEM()
		if err != nil {
			return // crypto/x509 does not make such a request
		}
		g, ok :=
			p.Decide(policy.NewRequest(policy.Submission{UID: rand.Text(), PEM: pem,
				Usages: []policy.Usage{policy.DigitalSignature}}), policy.Facts{}).(*policy.Grant)
		if !ok {
			return
		}
		leaf := issue(t, i, g)[0]
		var uris []string
		for _, uri := range leaf.URIs {
			uris = append(uris, uri.String())
		}
		if !slices.Equal(leaf.DNSNames, g.DNSNames()) ||
			!slices.Equal(leaf.EmailAddresses, g.EmailAddresses()) ||
			!slices.Equal(uris, g.URIs()) {
			t.Errorf("granted %v %v %v; the certificate says %v %v %v", g.DNSNames(),
				g.EmailAddresses(), g.URIs(), leaf.DNSNames, leaf.EmailAddresses, uris)
		}
		subject := g.Subject()
		if len(leaf.Subject.Names) != len(subject) {
			t.Fatalf("granted the subject %v; the certificate says %s", subject, leaf.Subject)
		}
		for i, name := range leaf.Subject.Names {
			if !name.Type.Equal(subject[i].Type) || name.Value != subject[i].Value {
				t.Errorf("granted %s=%q; the certificate says %v", subject[i].Name,
					subject[i].Value, name)
			}
		}
	})
}
