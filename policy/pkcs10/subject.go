package pkcs10

import (
	"cmp"
	"encoding/asn1"
	"strconv"
	"unicode/utf8"
)

// Attribute types that a subject may hold (RFC 5280, section 4.1.2.4, and PKCS#9's emailAddress).
var subjectTypes = map[string]string{
	"2.5.4.3":                    "CN",
	"2.5.4.5":                    "serialNumber",
	"2.5.4.6":                    "C",
	"2.5.4.7":                    "L",
	"2.5.4.8":                    "ST",
	"2.5.4.9":                    "STREET",
	"2.5.4.10":                   "O",
	"2.5.4.11":                   "OU",
	"2.5.4.17":                   "postalCode",
	"0.9.2342.19200300.100.1.25": "DC",
	"1.2.840.113549.1.9.1":       "emailAddress",
}

// AttributeName returns the short name of an attribute type, as in "O", or the type itself in
// dotted form if it has none here.
func AttributeName(kind asn1.ObjectIdentifier) string {
	return cmp.Or(subjectTypes[kind.String()], kind.String())
}

// MaxCommonName is the most bytes of a common name (ub-common-name, RFC 5280, appendix A.1).
const MaxCommonName = 64

type typeAndValue struct {
	Raw   asn1.RawContent
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

// An Attribute is one of a subject's, alone in its relative distinguished name.
type Attribute struct {
	Type  asn1.ObjectIdentifier
	Name  string // of the type, as in "O"
	Value string // printable
}

// readSubject reads the subject into r and refuses what it does not know.
func readSubject(der []byte, r *Request, found *faults) {
	const field = "request.subject"
	var rdns []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &rdns); err != nil || len(rest) > 0 {
		found.add(field, "is not a sequence of relative distinguished names")
		return
	}
	if len(rdns) > maxRDNs {
		found.add(field, "has %d relative distinguished names; at most %d are read", len(rdns),
			maxRDNs)
		return
	}
	seen := false
	for i, rdn := range rdns {
		attribute, ok := readRDN(field+"["+strconv.Itoa(i)+"]", rdn, found)
		if !ok {
			continue
		}
		r.Subject = append(r.Subject, attribute)
		if attribute.Name != "CN" {
			continue
		}
		if seen {
			found.add(field, "has more than one common name; one is allowed")
			continue
		}
		seen = true
		r.CommonName = attribute.Value
		checkCommonName(attribute.Value, found)
	}
}

func readRDN(field string, rdn asn1.RawValue, found *faults) (a Attribute, ok bool) {
	var set []typeAndValue
	if rest, err := asn1.UnmarshalWithParams(rdn.FullBytes, &set, "set"); err != nil ||
		len(rest) > 0 {
		return a, found.add(field, "is not a set of attribute types and values")
	}
	if len(set) != 1 {
		return a, found.add(field,
			"has %d attributes; one is allowed in each relative distinguished name", len(set))
	}
	if _, ok := sequence(set[0].Raw, 2, 2); !ok {
		return a, found.add(field, "has an attribute that is more than a type and a value")
	}
	var known bool
	a.Type = set[0].Type
	a.Name, known = subjectTypes[set[0].Type.String()]
	if !known {
		return a, found.add(field, "has the attribute type %s, which is not known here",
			Quote(set[0].Type.String()))
	}
	var fault string
	if a.Value, fault = readString(set[0].Value); fault != "" {
		return a, found.add(field, "(%s) %s", a.Name, fault)
	}
	return a, true
}

// readString reads one of the string types that RFC 5280, section 4.1.2.4, asks for, or says what
// is wrong.
func readString(v asn1.RawValue) (text, fault string) {
	if v.Class != asn1.ClassUniversal || v.IsCompound {
		return "", "is not a string"
	}
	switch v.Tag {
	case asn1.TagUTF8String:
		text = string(v.Bytes)
		if !utf8.ValidString(text) {
			return "", "is a UTF8String that is not UTF-8"
		}
	case asn1.TagPrintableString, asn1.TagIA5String:
		// encoding/asn1 knows the characters of each.
		if rest, err := asn1.Unmarshal(v.FullBytes, &text); err != nil || len(rest) > 0 {
			return "", "has characters that its string type does not allow"
		}
	default:
		return "", "is of an unusual string type; allowed are UTF8String, PrintableString " +
			"and IA5String"
	}
	for _, r := range text {
		if !strconv.IsPrint(r) {
			return "", "has control characters or others that cannot be printed: " + Quote(text)
		}
	}
	return text, ""
}

func checkCommonName(name string, found *faults) {
	const field = "request.subject.commonName"
	switch {
	case name == "":
		found.add(field, "is empty; leave it out or name one")
	case len(name) > MaxCommonName:
		found.add(field, "is %d bytes long; at most %d are allowed (RFC 5280, ub-common-name)",
			len(name), MaxCommonName)
	case !isASCII(name):
		found.add(field, "%s has characters outside ASCII", Quote(name))
	}
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
