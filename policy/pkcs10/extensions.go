package pkcs10

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/netip"
	"strconv"
	"strings"
)

// Attributes that a request may carry (RFC 2985, section 5.4). The ones that are
// not extensionRequest are read over and never logged: a challenge password is
// a secret.
const (
	oidChallengePassword = "1.2.840.113549.1.9.7"
	oidUnstructuredName  = "1.2.840.113549.1.9.2"
	oidExtensionRequest  = "1.2.840.113549.1.9.14"
)

// Extensions that a request may carry (RFC 5280, section 4.2.1).
const (
	oidSubjectKeyID     = "2.5.29.14"
	oidKeyUsage         = "2.5.29.15"
	oidSubjectAltName   = "2.5.29.17"
	oidBasicConstraints = "2.5.29.19"
	oidExtKeyUsage      = "2.5.29.37"

	oidAnyExtKeyUsage = "2.5.29.37.0"
)

type attribute struct {
	Type   asn1.ObjectIdentifier
	Values []asn1.RawValue `asn1:"set"`
}

// readAttributes reads the attributes of the request, and through them the
// requested extensions, into r.
func readAttributes(csr *x509.CertificateRequest, r *Request, found *faults) {
	const field = "request.attributes"
	raw, ok := rawAttributes(csr.RawTBSCertificateRequest)
	if !ok {
		found.add(field, "cannot be read")
		return
	}
	if len(raw) > maxAttributes {
		found.add(field, "are %d; at most %d are read", len(raw), maxAttributes)
		return
	}
	seen := map[string]bool{}
	for _, one := range raw {
		var a attribute
		_, ok := sequence(one.FullBytes, 2, 2)
		if rest, err := asn1.Unmarshal(one.FullBytes, &a); !ok || err != nil || len(rest) > 0 {
			found.add(field, "hold one that is not a type and a set of values")
			continue
		}
		oid := a.Type.String()
		if seen[oid] {
			found.add(field, "hold %s more than once", Quote(oid))
			continue
		}
		seen[oid] = true
		switch oid {
		case oidExtensionRequest:
			readExtensionRequest(a, r, found)
		case oidChallengePassword, oidUnstructuredName:
		default:
			found.add(field, "hold %s, which is not known here; allowed is extensionRequest (%s)", Quote(oid), oidExtensionRequest)
		}
	}
}

// rawAttributes walks the CertificationRequestInfo (RFC 2986, section 4.1) by hand, since
// crypto/x509 shows only the extensionRequest attributes.
func rawAttributes(tbs []byte) ([]asn1.RawValue, bool) {
	info, ok := sequence(tbs, 3, 4) // version, subject, public key, attributes
	if !ok || len(info) == 3 {      // some clients leave the empty set out
		return nil, ok
	}
	var attributes []asn1.RawValue
	rest, err := asn1.UnmarshalWithParams(info[3].FullBytes, &attributes, "tag:0,set")
	return attributes, err == nil && len(rest) == 0
}

func readExtensionRequest(a attribute, r *Request, found *faults) {
	const field = "request.extensions"
	if len(a.Values) != 1 {
		found.add(field, "come in %d values of extensionRequest; one is allowed (RFC 2985, section 5.4.2)", len(a.Values))
		return
	}
	var raw []asn1.RawValue
	if rest, err := asn1.Unmarshal(a.Values[0].FullBytes, &raw); err != nil || len(rest) > 0 {
		found.add(field, "cannot be read")
		return
	}
	if len(raw) > maxExtensions {
		found.add(field, "are %d; at most %d are read", len(raw), maxExtensions)
		return
	}
	seen := map[string]bool{}
	for _, one := range raw {
		var e pkix.Extension
		_, ok := sequence(one.FullBytes, 2, 3)
		if rest, err := asn1.Unmarshal(one.FullBytes, &e); !ok || err != nil || len(rest) > 0 {
			found.add(field, "hold one that is not a type, a criticality and a value")
			continue
		}
		oid := e.Id.String()
		if seen[oid] {
			found.add(field, "hold %s more than once (RFC 5280, section 4.2)", Quote(oid))
			continue
		}
		seen[oid] = true
		readExtension(oid, e, r, found)
	}
}

// readExtension looks at one extension. Only the names go on from here; the
// others are hints that must at least be harmless.
func readExtension(oid string, e pkix.Extension, r *Request, found *faults) {
	switch oid {
	case oidSubjectAltName:
		readNames(e.Value, r, found)
	case oidBasicConstraints:
		checkBasicConstraints(e.Value, found)
	case oidKeyUsage:
		checkKeyUsage(e.Value, found)
	case oidExtKeyUsage:
		checkExtKeyUsage(e.Value, found)
	case oidSubjectKeyID:
		if e.Critical {
			found.add("request.extensions", "hold a critical subjectKeyIdentifier; it must not be critical (RFC 5280, section 4.2.1.2)")
		}
	default:
		found.add("request.extensions", "hold %s, which is not known here; allowed are subjectAltName, basicConstraints, keyUsage, extKeyUsage and subjectKeyIdentifier", Quote(oid))
	}
}

// checkBasicConstraints knows the two ways in which clients write CA:FALSE: left
// out, as DER has it, and said outright.
func checkBasicConstraints(der []byte, found *faults) {
	leftOut, saidOutright := []byte{0x30, 0x00}, []byte{0x30, 0x03, 0x01, 0x01, 0x00}
	if !bytes.Equal(der, leftOut) && !bytes.Equal(der, saidOutright) {
		found.add("request.extensions.basicConstraints", "asks for more than CA:FALSE, such as a CA certificate or a path length; only CA:FALSE is allowed")
	}
}

func checkKeyUsage(der []byte, found *faults) {
	const field = "request.extensions.keyUsage"
	const keyCertSign, cRLSign = 5, 6 // RFC 5280, section 4.2.1.3
	var bits asn1.BitString
	rest, err := asn1.Unmarshal(der, &bits)
	switch {
	case err != nil || len(rest) > 0:
		found.add(field, "cannot be read")
	case bits.At(keyCertSign) == 1 || bits.At(cRLSign) == 1:
		found.add(field, "asks to sign certificates or revocation lists, which only a CA may")
	}
}

func checkExtKeyUsage(der []byte, found *faults) {
	const field = "request.extensions.extKeyUsage"
	var usages []asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(der, &usages); err != nil || len(rest) > 0 {
		found.add(field, "cannot be read")
		return
	}
	for _, usage := range usages {
		if usage.String() == oidAnyExtKeyUsage {
			found.add(field, "asks for anyExtendedKeyUsage; name the usages")
		}
	}
}

// Kinds of GeneralName (RFC 5280, section 4.2.1.6), by their tag.
var generalNames = map[int]string{
	0: "otherName", 1: "email", 2: "DNS", 3: "x400Address", 4: "directoryName",
	5: "ediPartyName", 6: "URI", 7: "IP", 8: "registeredID",
}

const (
	tagDNS = 2
	tagIP  = 7
)

// readNames reads the subject alternative names, then writes them again and
// requires the same bytes, so that nothing hides in the encoding.
func readNames(der []byte, r *Request, found *faults) {
	const field = "request.subjectAltName"
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &names); err != nil || len(rest) > 0 {
		found.add(field, "is not a sequence of names")
		return
	}
	if len(names) == 0 || len(names) > MaxNames {
		found.add(field, "has %d names; 1 to %d are allowed", len(names), MaxNames)
		return
	}
	for i, name := range names {
		readName(field+"["+strconv.Itoa(i)+"]", name, r, found)
	}
	again, err := asn1.Marshal(canonicalNames(names))
	if err != nil || !bytes.Equal(again, der) {
		found.add(field, "is not in its canonical encoding (DER)")
	}
}

func readName(field string, name asn1.RawValue, r *Request, found *faults) {
	switch {
	case name.Class == asn1.ClassContextSpecific && name.Tag == tagDNS && !name.IsCompound:
		text := strings.ToLower(string(name.Bytes)) // RFC 4343: case does not count
		if fault := CheckDNSName(text); fault != "" {
			found.add(field, "(DNS) %s %s", Quote(text), fault)
		}
		r.DNSNames = append(r.DNSNames, text)
	case name.Class == asn1.ClassContextSpecific && name.Tag == tagIP && !name.IsCompound:
		addr, ok := netip.AddrFromSlice(name.Bytes)
		if !ok || addr.Is4In6() {
			found.add(field, "(IP) is not an IPv4 address of 4 bytes or an IPv6 address of 16")
			return
		}
		r.IPAddresses = append(r.IPAddresses, addr)
	default:
		kind, known := generalNames[name.Tag]
		if !known || name.Class != asn1.ClassContextSpecific {
			kind = "unknown"
		}
		found.add(field, "is a name of the kind %s; allowed are DNS and IP", kind)
	}
}

// canonicalNames returns the names as DER writes them: context-specific, primitive.
func canonicalNames(names []asn1.RawValue) []asn1.RawValue {
	again := make([]asn1.RawValue, 0, len(names))
	for _, name := range names {
		again = append(again, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: name.Tag, IsCompound: name.IsCompound, Bytes: name.Bytes})
	}
	return again
}
