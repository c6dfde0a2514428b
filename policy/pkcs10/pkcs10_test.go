package pkcs10

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hsm-signer/internal/must"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

func TestParseReadsWhatCalicoAsksFor(t *testing.T) {
	pem := pkcs10test.Request{
		Subject: pkix.Name{
			Country: []string{"US"}, Province: []string{"California"},
			Locality:     []string{"San Francisco"},
			Organization: []string{"Tigera"}, OrganizationalUnit: []string{"Engineering"},
			CommonName: "typha-server",
		},
		DNSNames: []string{"typha-server"},
		IPs:      []netip.Addr{netip.MustParseAddr("10.65.0.7")},
		Extensions: []pkix.Extension{basicConstraints(t, false), keyUsage(t, 0xa8),
			extKeyUsage(t, 1, 2)},
	}.PEM(t)
	r, faults := Parse(pem)
	if len(faults) > 0 {
		t.Fatalf("faults in a good request: %v", faults)
	}
	if r.CommonName != "typha-server" || !slices.Equal(r.DNSNames, []string{"typha-server"}) ||
		!slices.Equal(r.IPAddresses, []netip.Addr{netip.MustParseAddr("10.65.0.7")}) ||
		r.Key != ECDSAP256 {
		t.Errorf("read %+v", r)
	}
}

func TestParseTakesEveryKeyAndAlgorithmOfCalico(t *testing.T) {
	rsaKey := must.Value(rsa.GenerateKey(rand.Reader, 2048))(t)
	for _, c := range []struct {
		key  crypto.Signer
		want KeyType
		algs []x509.SignatureAlgorithm
	}{
		{rsaKey, RSA2048,
			[]x509.SignatureAlgorithm{x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
				x509.SHA256WithRSAPSS}},
		{ecKey(t, elliptic.P256()), ECDSAP256,
			[]x509.SignatureAlgorithm{x509.ECDSAWithSHA256, x509.ECDSAWithSHA384,
				x509.ECDSAWithSHA512}},
		{ecKey(t, elliptic.P384()), ECDSAP384,
			[]x509.SignatureAlgorithm{x509.ECDSAWithSHA256, x509.ECDSAWithSHA384,
				x509.ECDSAWithSHA512}},
		{ecKey(t, elliptic.P521()), ECDSAP521,
			[]x509.SignatureAlgorithm{x509.ECDSAWithSHA256, x509.ECDSAWithSHA384,
				x509.ECDSAWithSHA512}},
	} {
		for _, alg := range c.algs {
			r, faults := Parse(pkcs10test.Request{Key: c.key, Algorithm: alg,
				DNSNames: []string{"a"}}.PEM(t))
			if len(faults) > 0 || r.Key != c.want {
				t.Errorf("%s with %s: %v", c.want, alg, faults)
			}
		}
	}
}

// Every entry has one defect; the fault must name the field and the defect.
func TestParseRefuses(t *testing.T) {
	good := pkcs10test.Request{DNSNames: []string{"a"}}
	goodPEM := good.PEM(t)
	rsa1024 := must.Value(rsa.GenerateKey(rand.Reader, 1024))(t)
	with := func(e ...pkix.Extension) []byte {
		return pkcs10test.Request{DNSNames: []string{"a"}, Extensions: e}.PEM(t)
	}
	names := func(dns ...string) []byte { return pkcs10test.Request{DNSNames: dns}.PEM(t) }
	san := func(kind int, content string) []byte {
		value := must.Value(asn1.Marshal([]asn1.RawValue{
			{Class: asn1.ClassContextSpecific, Tag: tagDNS, Bytes: []byte("a")},
			{Class: asn1.ClassContextSpecific, Tag: kind, Bytes: []byte(content)},
		}))(t)
		return pkcs10test.Request{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29,
			17}, Value: value}}}.PEM(t)
	}
	cn := func(name string) []byte {
		return pkcs10test.Request{Subject: pkix.Name{CommonName: name},
			DNSNames: []string{"a"}}.PEM(t)
	}
	key := pkcs10test.NewKey(t)
	whole := pkcs10test.Request{Key: key, DNSNames: []string{"a"}}.DER(t)
	attributes := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true}
	flipped := bytes.Clone(good.DER(t))
	flipped[len(flipped)-3] ^= 1
	oidCN := asn1.ObjectIdentifier{2, 5, 4, 3}
	attribute := func(kind asn1.ObjectIdentifier, value string) []byte {
		subject := pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: kind, Value: value}}}
		return pkcs10test.Request{Subject: subject, DNSNames: []string{"a"}}.PEM(t)
	}
	for _, c := range []struct {
		name           string
		text           []byte
		field, message string
	}{
		{"empty", nil, "request", "has no line"},
		{"two blocks", slices.Concat(goodPEM, goodPEM), "request", "exactly one block"},
		{"text before on the same line", slices.Concat([]byte("x"), goodPEM), "request",
			"on the same line"},
		{"another block before",
			slices.Concat([]byte("-----BEGIN X-----\nAAAA\n-----END X-----\n"), goodPEM), "request",
			"exactly one block"},
		{"too long with the text before",
			slices.Concat(bytes.Repeat([]byte("x\n"), MaxPEM/2-10), goodPEM), "request",
			"at most 16384"},
		{"text after", slices.Concat(goodPEM, []byte("x\n")), "request", "exactly one block"},
		{"headers", bytes.Replace(goodPEM, []byte("-----\n"), []byte("-----\nA: b\n\n"), 1),
			"request", "headers"},
		{"other type",
			bytes.ReplaceAll(goodPEM, []byte("CERTIFICATE REQUEST"),
				[]byte("NEW CERTIFICATE REQUEST")), "request", "has no line"},
		{"too long", slices.Concat(goodPEM, bytes.Repeat([]byte("\n"), MaxPEM)), "request",
			"at most 16384"},
		{"not DER", pkcs10test.Encode([]byte("hello")), "request", "not a PKCS#10"},
		{"trailing DER", pkcs10test.Encode(append(good.DER(t), 0)), "request", "not a PKCS#10"},
		{"second attributes", resigned(t, key, whole, attributes), "request.attributes",
			"cannot be read"},
		{"element behind the attributes", resigned(t, key, whole, asn1.NullRawValue),
			"request.attributes", "cannot be read"},
		{"element behind the signature", pkcs10test.Encode(extended(t, whole, asn1.NullRawValue)),
			"request", "more than a CertificationRequest"},
		{"path length",
			with(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19},
				Value: []byte{0x30, 3, 2, 1, 0}}), "request.extensions.basicConstraints",
			"CA:FALSE"},
		{"bad signature", pkcs10test.Encode(flipped), "request.signature", "does not verify"},
		{"P-224", pkcs10test.Request{Key: ecKey(t, elliptic.P224())}.PEM(t), "request.publicKey",
			"P-224"},
		{"RSA-1024", pkcs10test.Request{Key: rsa1024}.PEM(t), "request.publicKey", "1024"},
		{"CA:TRUE", with(basicConstraints(t, true)), "request.extensions.basicConstraints",
			"CA certificate"},
		{"keyCertSign", with(keyUsage(t, 0x04)), "request.extensions.keyUsage", "only a CA"},
		{"any usage", with(extKeyUsage(t, 0)), "request.extensions.extKeyUsage",
			"anyExtendedKeyUsage"},
		{"unknown extension",
			with(pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: []byte{5, 0}}),
			"request.extensions", "1.2.3.4"},
		{"email without a domain", san(1, "a"), "request.subjectAltName[1]", "NAME@DOMAIN"},
		{"email with a quoted name", san(1, "\"a b\"@b"), "request.subjectAltName[1]",
			"unusual form"},
		{"email with two domains", san(1, "a@b@c"), "request.subjectAltName[1]", "domain"},
		{"email at a wildcard", san(1, "a@*.b.c"), "request.subjectAltName[1]", "domain"},
		{"relative URI", san(6, "a/b"), "request.subjectAltName[1]", "not an absolute URI"},
		{"URI with an upper-case scheme", san(6, "SPIFFE://a/b"), "request.subjectAltName[1]",
			"not an absolute URI"},
		{"URI without a host", san(6, "urn:a:b"), "request.subjectAltName[1]", "has no host"},
		{"URI with a user", san(6, "spiffe://a@b/c"), "request.subjectAltName[1]",
			"a character other than"},
		{"URI with a port", san(6, "spiffe://a:1/c"), "request.subjectAltName[1]", "has a host"},
		{"URI with a query", san(6, "spiffe://a/b?c"), "request.subjectAltName[1]",
			"a character other than"},
		{"URI with an escape", san(6, "spiffe://a/b%2fc"), "request.subjectAltName[1]",
			"a character other than"},
		{"URI with an upper-case host", san(6, "spiffe://A/b"), "request.subjectAltName[1]",
			"has a host"},
		{"URI that climbs", san(6, "spiffe://a/b/../c"), "request.subjectAltName[1]",
			"relative segment"},
		{"URI with an empty segment", san(6, "spiffe://a//c"), "request.subjectAltName[1]",
			"empty or relative segment"},
		{"otherName", san(0, "x"), "request.subjectAltName[1]", "otherName"},
		{"dirName", san(4, "x"), "request.subjectAltName[1]", "directoryName"},
		{"x400Address", san(3, "x"), "request.subjectAltName[1]", "x400Address"},
		{"ediPartyName", san(5, "x"), "request.subjectAltName[1]", "ediPartyName"},
		{"registered id", san(8, "\x2a"), "request.subjectAltName[1]", "registeredID"},
		{"short IP", san(7, "abc"), "request", "cannot parse IP"},
		{"IP in 6", san(7, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x0a\x00\x00\x01"),
			"request.subjectAltName[1]", "4 bytes"},
		{"wildcard over a top-level domain", names("*.a"), "request.subjectAltName[0]",
			"top-level"},
		{"wildcard within a name", names("a.*.b.c"), "request.subjectAltName[0]", "character"},
		{"wildcard of a part", names("a*.b.c"), "request.subjectAltName[0]", "character"},
		{"two wildcards", names("*.*.b.c"), "request.subjectAltName[0]", "wildcard"},
		{"NUL", names("a\x00b"), "request.subjectAltName[0]", "character"},
		{"newline", names("a\nb"), "request.subjectAltName[0]", "character"},
		{"empty name", names(""), "request.subjectAltName[0]", "empty"},
		{"empty label", names("a..b"), "request.subjectAltName[0]", "empty label"},
		{"long label", names(strings.Repeat("a", 64)), "request.subjectAltName[0]",
			"longer than 63"},
		{"long name", names(strings.Repeat("a.", 127) + "a"), "request.subjectAltName[0]",
			"longer than 253"},
		{"underscore", names("a_b"), "request.subjectAltName[0]", "character"},
		{"hyphen at the end", names("a-.b"), "request.subjectAltName[0]", "hyphen"},
		{"trailing dot", names("a."), "request.subjectAltName[0]", "ends with a dot"},
		{"IP as DNS", names("10.0.0.1"), "request.subjectAltName[0]", "IP address"},
		{"A-label", names("xn--bcher-kva"), "request.subjectAltName[0]", "internationalised"},
		{"101 names", names(many(101)...), "request.subjectAltName", "101 names"},
		{"a name twice", names("a", "b", "a"), "request.subjectAltName", "more than once"},
		{"a name twice, in another case", names("a", "A"), "request.subjectAltName",
			"more than once"},
		{"long CN", cn(strings.Repeat("a", 65)), "request.subject.commonName", "at most 64"},
		{"ANSI CN", cn("a\x1b[31m"), "request.subject[0]", "control characters"},
		{"RTL CN", cn("a\u202eb"), "request.subject[0]", "cannot be printed"},
		{"empty CN", attribute(oidCN, ""), "request.subject.commonName", "is empty"},
		{"unknown subject", attribute(asn1.ObjectIdentifier{1, 2, 3, 4}, "a"), "request.subject[0]",
			"attribute type \"1.2.3.4\""},
		{"critical key ID",
			with(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 14}, Critical: true,
				Value: []byte{4, 1, 1}}), "request.extensions", "must not be critical"},
		{"two CNs",
			pkcs10test.Request{Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
				{Type: oidCN, Value: "a"}, {Type: oidCN, Value: "b"},
			}}}.PEM(t), "request.subject", "more than one common name"},
	} {
		t.Run(c.name, func(t *testing.T) { requireFault(t, c.text, c.field, c.message) })
	}
}

// many are so many good names.
func many(n int) (names []string) {
	for i := range n {
		names = append(names, "a"+strconv.Itoa(i))
	}
	return names
}

// Wherever among the good names the bad one stands, it is found.
func TestBadNameIsFoundAtEveryIndex(t *testing.T) {
	key := pkcs10test.NewKey(t)
	for i := range MaxNames {
		names := slices.Insert(many(MaxNames-1), i, "*.b")
		requireFault(t, pkcs10test.Request{Key: key, DNSNames: names}.PEM(t),
			fmt.Sprintf("request.subjectAltName[%d]", i), "wildcard")
	}
}

// extended returns the SEQUENCE with one more element.
func extended(t testing.TB, der []byte, more asn1.RawValue) []byte {
	t.Helper()
	var elements []asn1.RawValue
	if _, err := asn1.Unmarshal(der, &elements); err != nil {
		t.Fatal(err)
	}
	return must.Value(asn1.Marshal(append(elements, more)))(t)
}

// resigned returns the request with one more element in what is signed.
func resigned(t testing.TB, key *ecdsa.PrivateKey, der []byte, more asn1.RawValue) []byte {
	t.Helper()
	var elements []asn1.RawValue
	if _, err := asn1.Unmarshal(der, &elements); err != nil {
		t.Fatal(err)
	}
	tbs := extended(t, elements[0].FullBytes, more)
	digest := sha256.Sum256(tbs)
	signature := must.Value(ecdsa.SignASN1(rand.Reader, key, digest[:]))(t)
	elements[0] = asn1.RawValue{FullBytes: tbs}
	elements[2] =
		asn1.RawValue{FullBytes: must.Value(asn1.Marshal(asn1.BitString{Bytes: signature,
			BitLength: 8 * len(signature)}))(t)}
	return pkcs10test.Encode(must.Value(asn1.Marshal(elements))(t))
}

func requireFault(t *testing.T, text []byte, field, message string) {
	t.Helper()
	_, faults := Parse(text)
	for _, f := range faults {
		if f.Field == field && strings.Contains(f.Message, message) {
			return
		}
	}
	t.Errorf("no fault in %s that says %q; got %v", field, message, faults)
}

// FuzzParse: no input breaks it, and what it lets through asks for the same names when it is read
// by crypto/x509, in plain ASCII.
func FuzzParse(f *testing.F) {
	for _, der := range heavy(f) {
		f.Add(der)
	}
	f.Add(pkcs10test.Request{DNSNames: []string{"a.b"},
		IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}.DER(f))
	f.Add(pkcs10test.Request{Subject: pkix.Name{CommonName: "a"},
		Extensions: []pkix.Extension{basicConstraints(f, false)}}.DER(f))
	f.Fuzz(func(t *testing.T, der []byte) {
		requireCheap(t, der)
		r, faults := Parse(pkcs10test.Encode(der))
		for _, fault := range faults {
			if strings.ContainsFunc(fault.Message, func(c rune) bool {
				return c < ' ' || c == 0x7f
			}) {
				t.Errorf("a control character in %q", fault.Message)
			}
		}
		if len(faults) > 0 {
			return
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil || csr.CheckSignature() != nil || csr.Subject.CommonName != r.CommonName ||
			!slices.EqualFunc(csr.DNSNames, r.DNSNames, strings.EqualFold) ||
			len(csr.IPAddresses) != len(r.IPAddresses) {
			t.Errorf("x509 reads it otherwise: %v", err)
		}
		if !slices.Equal(csr.EmailAddresses, r.EmailAddresses) || len(csr.URIs) != len(r.URIs) {
			t.Errorf("x509 reads %v and %v; granted would be %v and %v", csr.EmailAddresses,
				csr.URIs, r.EmailAddresses, r.URIs)
		}
		for _, name := range r.DNSNames {
			if CheckPresentedDNSName(name) != "" {
				t.Errorf("%q got through", name)
			}
		}
		for i, uri := range csr.URIs {
			if uri.String() != r.URIs[i] || CheckURI(r.URIs[i]) != "" {
				t.Errorf("%q got through, which x509 reads as %q", r.URIs[i], uri)
			}
		}
	})
}

// requireCheap bounds what reading the request allocates by its length: no part of it is read
// more than a few times, whatever it is made of.
func requireCheap(t *testing.T, der []byte) {
	t.Helper()
	const once, perByte = 2000, 2 // allocations
	text := pkcs10test.Encode(der)
	if n := testing.AllocsPerRun(1, func() { Parse(text) }); n > once+perByte*float64(len(der)) {
		t.Errorf("%.0f allocations for %d bytes", n, len(der))
	}
}

func TestRefusingIsCheap(t *testing.T) {
	for name, der := range heavy(t) {
		t.Run(name, func(t *testing.T) { requireCheap(t, der) })
	}
}

// heavy are requests that are as long as can be, each with much of something else.
func heavy(t testing.TB) map[string][]byte {
	t.Helper()
	const room = MaxPEM / 5 * 3 // bytes of DER
	key := pkcs10test.NewKey(t)
	whole := pkcs10test.Request{Key: key, DNSNames: []string{"a"}}.DER(t)
	san := func(one asn1.RawValue, n int) []byte {
		value := must.Value(asn1.Marshal(slices.Repeat([]asn1.RawValue{one}, n)))(t)
		return pkcs10test.Request{Key: key,
			Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17},
				Value: value}}}.DER(t)
	}
	dns := func(text string) asn1.RawValue {
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tagDNS, Bytes: []byte(text)}
	}
	var organizations []string
	for i := range room / 20 {
		organizations = append(organizations, strings.Repeat("x", i%7+1))
	}
	var extensions []pkix.Extension
	for i := range room / 20 {
		extensions = append(extensions,
			pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, i}, Value: []byte{5, 0}})
	}
	nested := []byte{}
	for len(nested) < room {
		nested =
			must.Value(asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true,
				Bytes: nested}))(t)
	}
	modulus := new(big.Int).SetBit(new(big.Int).Lsh(big.NewInt(1), 3*room), 0, 1)
	return map[string][]byte{
		"names":     san(dns("a"), room/3),
		"odd names": san(dns("\x01"), room/3),
		"labels":    san(dns(strings.Repeat("a.", room/2)), 1),
		"organizations": pkcs10test.Request{Key: key,
			Subject: pkix.Name{Organization: organizations}}.DER(t),
		"extensions":  pkcs10test.Request{Key: key, Extensions: extensions}.DER(t),
		"nested":      nested,
		"NULLs":       extended(t, whole, asn1.RawValue{FullBytes: bytes.Repeat(asn1.NullBytes, room/2)}),
		"a large key": signedBy(t, modulus),
		"zeros":       make([]byte, room),
	}
}

// signedBy is a request with that modulus and a signature that is none.
func signedBy(t testing.TB, modulus *big.Int) []byte {
	t.Helper()
	block, _ := pem.Decode(pkcs10test.SignedByHand(t, modulus, 65537, big.NewInt(1)))
	return block.Bytes
}

func basicConstraints(t testing.TB, isCA bool) pkix.Extension {
	t.Helper()
	value := must.Value(asn1.Marshal(struct {
		IsCA bool `asn1:"optional"`
	}{isCA}))(t)
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: value}
}

func keyUsage(t testing.TB, bits byte) pkix.Extension {
	t.Helper()
	value := must.Value(asn1.Marshal(asn1.BitString{Bytes: []byte{bits}, BitLength: 8}))(t)
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: value}
}

// extKeyUsage takes 0 for any, or the last number of id-kp.
func extKeyUsage(t testing.TB, usages ...int) pkix.Extension {
	t.Helper()
	var oids []asn1.ObjectIdentifier
	for _, u := range usages {
		if u == 0 {
			oids = append(oids, asn1.ObjectIdentifier{2, 5, 29, 37, 0})
		} else {
			oids = append(oids, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, u})
		}
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37},
		Value: must.Value(asn1.Marshal(oids))(t)}
}

func ecKey(t testing.TB, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	return must.Value(ecdsa.GenerateKey(curve, rand.Reader))(t)
}
