package pkcs10

import (
	"bytes"
	"encoding/asn1"
	"net/netip"
	"strconv"
	"strings"
)

// Kinds of GeneralName (RFC 5280, section 4.2.1.6), by their tag.
var generalNames = map[int]string{
	0: "otherName", 1: "email", 2: "DNS", 3: "x400Address", 4: "directoryName",
	5: "ediPartyName", 6: "URI", 7: "IP", 8: "registeredID",
}

const (
	tagEmail = 1
	tagDNS   = 2
	tagURI   = 6
	tagIP    = 7
)

// readNames reads the subject alternative names, then writes them again and requires the same
// bytes, so that nothing hides in the encoding.
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
	if repeats(r.DNSNames) || repeats(r.IPAddresses) || repeats(r.URIs) ||
		repeats(r.EmailAddresses) {
		found.add(field, "has a name more than once")
	}
	again, err := asn1.Marshal(canonicalNames(names))
	if err != nil || !bytes.Equal(again, der) {
		found.add(field, "is not in its canonical encoding (DER)")
	}
}

// repeats reports whether any of the values is there twice.
func repeats[T comparable](values []T) bool {
	seen := make(map[T]bool, len(values))
	for _, value := range values {
		if seen[value] {
			return true
		}
		seen[value] = true
	}
	return false
}

func readName(field string, name asn1.RawValue, r *Request, found *faults) {
	text := string(name.Bytes)
	kind, known := generalNames[name.Tag]
	if !known || name.Class != asn1.ClassContextSpecific {
		kind, name.Tag = "unknown", -1
	}
	if name.IsCompound &&
		(name.Tag == tagDNS || name.Tag == tagIP || name.Tag == tagURI || name.Tag == tagEmail) {
		kind, name.Tag = "malformed "+kind, -1
	}
	check := func(fault string) {
		if fault != "" {
			found.add(field, "(%s) %s %s", kind, Quote(text), fault)
		}
	}
	switch name.Tag {
	case tagDNS:
		if isASCII(text) { // beyond it, lower case could turn one letter into another
			text = strings.ToLower(text) // RFC 4343: case does not count
		}
		check(CheckPresentedDNSName(text))
		r.DNSNames = append(r.DNSNames, text)
	case tagURI:
		check(CheckURI(text))
		r.URIs = append(r.URIs, text)
	case tagEmail:
		check(CheckEmailAddress(text))
		r.EmailAddresses = append(r.EmailAddresses, text)
	case tagIP:
		addr, ok := netip.AddrFromSlice(name.Bytes)
		if !ok || addr.Is4In6() {
			found.add(field, "(IP) is not an IPv4 address of 4 bytes or an IPv6 address of 16")
			return
		}
		r.IPAddresses = append(r.IPAddresses, addr)
	default:
		found.add(field, "is a name of the kind %s; allowed are DNS, IP, URI and email", kind)
	}
}

// canonicalNames returns the names as DER writes them: context-specific, primitive.
func canonicalNames(names []asn1.RawValue) []asn1.RawValue {
	again := make([]asn1.RawValue, 0, len(names))
	for _, name := range names {
		again = append(again,
			asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: name.Tag,
				IsCompound: name.IsCompound, Bytes: name.Bytes})
	}
	return again
}
