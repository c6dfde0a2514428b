package issuer

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net/netip"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

func aProfile(pathLength int) CAProfile {
	return CAProfile{
		Subject: pkix.Name{CommonName: "ca"}, Lifetime: time.Hour,
		Constraints: Constraints{
			PathLength: pathLength,
			Permitted: NameSpace{DNSDomains: []string{"example.com", "typha-server"},
				IPRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
			Excluded: NameSpace{DNSDomains: []string{"a.example.com"},
				IPRanges: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}},
		},
	}
}

const constraintsInWords = "; permitted are DNS:example.com, DNS:typha-server, IP:10.0.0.0/8; " +
	"excluded are DNS:a.example.com, IP:fd00::/8"

// What a profile says stands in the certificate, as crypto/x509 reads it.
func TestSelfSignedCertificateHoldsTheProfile(t *testing.T) {
	for pathLength, want := range []string{"CA:TRUE, path length 0", "CA:TRUE, path length 1"} {
		key := pkcs10test.NewKey(t)
		text, err := SelfSign(aProfile(pathLength), key)
		must.OK(t, err)
		chain, err := ReadChain(text)
		must.OK(t, err)
		if err := chain.Check(key.Public(), time.Now()); err != nil {
			t.Error(err)
		}
		if got := ConstraintsOf(chain[0]).String(); got != want+constraintsInWords {
			t.Errorf("constraints %q", got)
		}
		if !chain[0].PermittedDNSDomainsCritical {
			t.Error("the name constraints are not critical")
		}
	}
}

// A root that copies what is asked for makes the extensions that a self-signed certificate has.
func TestRequestAsksForTheSameExtensions(t *testing.T) {
	key := pkcs10test.NewKey(t)
	for pathLength := range 2 {
		text, err := SelfSign(aProfile(pathLength), key)
		must.OK(t, err)
		chain, err := ReadChain(text)
		must.OK(t, err)
		if text, err = Request(aProfile(pathLength), key); err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		request, err := x509.ParseCertificateRequest(block.Bytes)
		must.OK(t, err)
		if err := request.CheckSignature(); err != nil || len(request.Extensions) != 3 ||
			!bytes.Equal(request.RawSubject, chain[0].RawSubject) {
			t.Errorf("%v; %d extensions; subject %s", err, len(request.Extensions), request.Subject)
		}
		for _, asked := range request.Extensions {
			requireExtension(t, chain[0], asked)
		}
	}
}

func requireExtension(t *testing.T, cert *x509.Certificate, want pkix.Extension) {
	t.Helper()
	for _, has := range cert.Extensions {
		if has.Id.Equal(want.Id) {
			if has.Critical != want.Critical || !bytes.Equal(has.Value, want.Value) {
				t.Errorf("extension %s is asked for as %x (critical: %t), and certified as %x "+
					"(critical: %t)", want.Id, want.Value, want.Critical, has.Value, has.Critical)
			}
			return
		}
	}
	t.Errorf("extension %s is asked for and not certified", want.Id)
}

func TestConstraintsThatAreNone(t *testing.T) {
	c := Constraints{PathLength: NoPathLength}
	if extensions, err := c.extension(); len(extensions) > 0 || err != nil ||
		c.String() != "CA:TRUE, any path length" {
		t.Errorf("%q, %v, %v", c, extensions, err)
	}
	c.Excluded.Others = []string{"email:example.com"}
	if _, err := c.extension(); err == nil {
		t.Error("names that cannot be written are left out silently")
	}
}
