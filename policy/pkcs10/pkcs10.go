// Package pkcs10 reads a certificate request in a closed world.
//
// Duty: turn the PEM of a PKCS#10 request (RFC 2986) into the few things that a decision needs, and
// find every reason for which the request must be refused whoever sends it: what is not known is
// refused, not skipped.
//
// Contract: [Parse] does a bounded amount of work for each byte of input, checks the size of a key
// before it checks a signature with it, does no I/O, and never panics. A request with a fault must
// not be granted. In a Request without faults the common name is printable ASCII, the DNS names are
// lower case and may have a wildcard for their first label, and the URIs and email addresses are
// plain; the messages of a Fault hold what the requester sent only quoted and cut short.
package pkcs10

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits on what is read. They come before the loops that they bound.
const (
	MaxPEM        = 16 << 10 // bytes of PEM; an RSA-8192 request with 100 names fits twice
	MaxNames      = 100      // subject alternative names
	maxRDNs       = 32       // relative distinguished names in the subject
	maxExtensions = 16
	maxAttributes = 8
)

const pemType = "CERTIFICATE REQUEST" // RFC 7468, section 7

// A Request is what a PKCS#10 request asks for.
type Request struct {
	SHA256     [sha256.Size]byte // of the DER
	Subject    []Attribute       // in the order of the request; the common name is one of them
	CommonName string            // empty when the subject has none
	// each kind of name in the order of the request; these in lower case
	DNSNames       []string
	IPAddresses    []netip.Addr // IPv4 unmapped
	URIs           []string
	EmailAddresses []string
	PublicKey      crypto.PublicKey
	KeySHA256      [sha256.Size]byte // of the SubjectPublicKeyInfo in DER
	Key            KeyType
}

// A Fault is one reason for which a request must be refused.
type Fault struct {
	Field   string // where, as a path: "request.subject", "request.dnsNames[2]"
	Message string // what is wrong and what would be right
	// UnknownKey describes a key of a type that is never certified, such as "an RSA key of 1024
	// bits"; empty if the fault is another.
	UnknownKey string
}

// faults collects faults; its methods return whether all was well.
type faults []Fault

func (f *faults) add(field, format string, args ...any) bool {
	*f = append(*f, Fault{Field: field, Message: fmt.Sprintf(format, args...)})
	return false
}

// Parse reads one PEM-encoded request. It returns nil if what is there cannot be read as a request
// at all, and then with at least one fault.
func Parse(text []byte) (*Request, []Fault) {
	var found faults
	der, ok := decodePEM(text, &found)
	if !ok {
		return nil, found
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		found.add("request", "is not a PKCS#10 request: %s", Quote(err.Error()))
		return nil, found
	}
	r := newRequest(csr, &found)
	readSubject(csr.RawSubject, r, &found)
	readAttributes(csr, r, &found)
	r.readKey(csr, &found)
	return r, found
}

// newRequest returns the request without its names and without the type of its key.
func newRequest(csr *x509.CertificateRequest, found *faults) *Request {
	r := &Request{SHA256: sha256.Sum256(csr.Raw), PublicKey: csr.PublicKey,
		KeySHA256: sha256.Sum256(csr.RawSubjectPublicKeyInfo)}
	if _, ok := sequence(csr.Raw, 3, 3); !ok {
		found.add("request", "has more than a CertificationRequest holds (RFC 2986, section 4.2)")
	}
	if csr.Version != 0 {
		found.add("request.version", "is %d; RFC 2986 knows version 0 only", csr.Version)
	}
	return r
}

// readKey reads the type of the key, and proves that the requester holds its private half.
func (r *Request) readKey(csr *x509.CertificateRequest, found *faults) {
	var ok bool
	if r.Key, ok = judgeKey(csr.PublicKey, csr.RawSubjectPublicKeyInfo, found); ok {
		checkSignature(csr, found)
	}
}

// decodePEM returns the DER of the only block in text. The block must be just what RFC 7468,
// section 3, calls strict, except for the length of its lines: no headers, nothing behind it, and
// base64 of which every bit is the DER's. Text may stand before it; see [checkPreface].
func decodePEM(text []byte, found *faults) ([]byte, bool) {
	const field = "request"
	const begin, end = "-----BEGIN " + pemType + "-----", "-----END " + pemType + "-----"
	if len(text) > MaxPEM {
		return nil, found.add(field, "is too long: at most %d bytes are read, with the text "+
			"before the PEM block", MaxPEM)
	}
	preface, body, begins := bytes.Cut(bytes.TrimRight(text, "\r\n\t "), []byte(begin))
	if !begins {
		return nil, found.add(field, "has no line %s", begin)
	}
	if fault := checkPreface(preface); fault != "" {
		return nil, found.add(field, "%s", fault)
	}
	body, ends := bytes.CutSuffix(body, []byte("\n"+end))
	switch {
	case bytes.Contains(body, []byte("-----")) || !ends:
		return nil, found.add(field, "has data after its PEM block, or does not end with %s on a "+
			"line of its own; exactly one block is allowed", end)
	case bytes.Contains(body, []byte(":")):
		return nil, found.add(field, "has PEM headers; none are allowed")
	}
	// which reads over the ends of lines alone
	der, err := base64.StdEncoding.Strict().DecodeString(string(body))
	if first := bytes.TrimLeft(body, "\r"); err != nil || !bytes.HasPrefix(first, []byte("\n")) {
		return nil, found.add(field, "is not a well-formed PEM block: between its first and its "+
			"last line there is something other than base64")
	}
	return der, true
}

// checkPreface returns what is wrong with the text before the PEM block, or nothing. RFC 7468,
// section 5.2, allows such text, GnuTLS writes it, and the API server accepts it. Nothing reads it,
// so it changes nothing. But every reader of PEM must find the same block: the text holds no
// boundary of another one, and the block begins a line.
func checkPreface(text []byte) string {
	isControl := func(r rune) bool {
		return unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t'
	}
	switch {
	case len(text) == 0:
		return ""
	case text[len(text)-1] != '\n':
		return "has something before its PEM block on the same line"
	case bytes.Contains(text, []byte("-----BEGIN")) || bytes.Contains(text, []byte("-----END")):
		return "has more than one PEM block; exactly one block is allowed"
	case !utf8.Valid(text) || bytes.ContainsFunc(text, isControl):
		return "has something other than text before its PEM block"
	}
	return ""
}

// sequence returns the elements of a SEQUENCE that must have from least to most of them.
// encoding/asn1 and crypto/x509 read over what follows the last field that they know; here nothing
// may.
func sequence(der []byte, least, most int) ([]asn1.RawValue, bool) {
	var elements []asn1.RawValue
	rest, err := asn1.Unmarshal(der, &elements)
	return elements, err == nil && len(rest) == 0 && len(elements) >= least && len(elements) <= most
}

// checkSignature proves that the requester holds the private key. It is called only for a key that
// was judged to be of an allowed size.
func checkSignature(csr *x509.CertificateRequest, found *faults) {
	const field = "request.signature"
	if !wholeBytes(csr.Raw) {
		found.add(field, "has unused bits, which no signature has")
		return
	}
	switch csr.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA:
		// NULL by the book; many clients leave it out.
		if p := signatureParameters(csr.Raw); len(p) != 0 && !bytes.Equal(p, asn1.NullBytes) {
			found.add(field, "has odd parameters; RSA with PKCS#1 v1.5 has NULL ones (RFC 4055, "+
				"section 5)")
			return
		}
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519:
		if len(signatureParameters(csr.Raw)) != 0 {
			found.add(field,
				"has parameters; %s has none (RFC 5758, section 3.2; RFC 8410, section 3)",
				csr.SignatureAlgorithm)
			return
		}
	case x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		// crypto/x509 compares the parameters with those of RFC 4055, section 3.1, byte by byte.
	default:
		found.add(field, "uses %s; allowed are RSA, RSA-PSS and ECDSA with SHA-256, SHA-384 or "+
			"SHA-512, and Ed25519", Quote(csr.SignatureAlgorithm.String()))
		return
	}
	if err := csr.CheckSignature(); err != nil {
		found.add(field, "does not verify with the key in the request: %s", Quote(err.Error()))
	}
}

// wholeBytes reports whether the outer signature fills the last byte of its BIT STRING, which
// encoding/asn1 would shift to its place otherwise.
func wholeBytes(der []byte) bool {
	var bits asn1.BitString
	outer, ok := sequence(der, 3, 3)
	if !ok {
		return false
	}
	_, err := asn1.Unmarshal(outer[2].FullBytes, &bits)
	return err == nil && bits.BitLength == 8*len(bits.Bytes)
}

// signatureParameters returns the DER of the parameters of the outer signature
// algorithm, empty when there are none.
func signatureParameters(der []byte) []byte {
	unreadable := []byte("unreadable")
	outer, ok := sequence(der, 3, 3) // info, algorithm, signature (RFC 2986, section 4.2)
	if !ok {
		return unreadable
	}
	algorithm, ok := sequence(outer[1].FullBytes, 1, 2) // RFC 5280, section 4.1.1.2
	switch {
	case !ok:
		return unreadable
	case len(algorithm) == 1:
		return nil
	}
	return algorithm[1].FullBytes
}

// Quote returns what a requester sent in a form that is safe in a log, a terminal and a condition:
// ASCII, quoted, escaped, at most 80 bytes of it.
func Quote(s string) string {
	const most = 80
	if len(s) > most {
		return strconv.QuoteToASCII(strings.ToValidUTF8(s[:most], "?")) + "..."
	}
	return strconv.QuoteToASCII(s)
}
