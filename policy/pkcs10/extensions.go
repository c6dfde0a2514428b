package pkcs10

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
)

// Attributes that a request may carry (RFC 2985, section 5.4). The ones that are not
// extensionRequest are read over and never logged: a challenge password is a secret.
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

// readAttributes reads the attributes of the request, and through them the requested extensions,
// into r.
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
			found.add(field, "hold %s, which is not known here; allowed is extensionRequest (%s)",
				Quote(oid), oidExtensionRequest)
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
		found.add(field, "come in %d values of extensionRequest; one is allowed (RFC 2985, "+
			"section 5.4.2)", len(a.Values))
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

// readExtension checks one extension. Only the names go on from here; the others are hints that
// must at least be harmless.
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
			found.add("request.extensions", "hold a critical subjectKeyIdentifier; it must not "+
				"be critical (RFC 5280, section 4.2.1.2)")
		}
	default:
		found.add("request.extensions", "hold %s, which is not known here; allowed are "+
			"subjectAltName, basicConstraints, keyUsage, extKeyUsage and subjectKeyIdentifier",
			Quote(oid))
	}
}

// checkBasicConstraints knows the two ways in which clients write CA:FALSE: left out, as DER has
// it, and explicit.
func checkBasicConstraints(der []byte, found *faults) {
	leftOut, saidOutright := []byte{0x30, 0x00}, []byte{0x30, 0x03, 0x01, 0x01, 0x00}
	if !bytes.Equal(der, leftOut) && !bytes.Equal(der, saidOutright) {
		found.add("request.extensions.basicConstraints", "asks for more than CA:FALSE, such as a "+
			"CA certificate or a path length; only CA:FALSE is allowed")
	}
}

func checkKeyUsage(der []byte, found *faults) {
	const field = "request.extensions.keyUsage"
	const keyCertSign, cRLSign, last = 5, 6, 8 // RFC 5280, section 4.2.1.3
	var bits asn1.BitString
	rest, err := asn1.Unmarshal(der, &bits)
	switch {
	case err != nil || len(rest) > 0:
		found.add(field, "cannot be read")
	case bits.At(keyCertSign) == 1 || bits.At(cRLSign) == 1:
		found.add(field, "asks to sign certificates or revocation lists, which only a CA may")
	case bits.BitLength > last+1:
		found.add(field, "has bits that no usage is known for")
	}
}

func checkExtKeyUsage(der []byte, found *faults) {
	const field = "request.extensions.extKeyUsage"
	var usages []asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(der, &usages); err != nil || len(rest) > 0 {
		found.add(field, "cannot be read")
		return
	}
	seen := map[string]bool{}
	for _, usage := range usages {
		oid := usage.String()
		switch {
		case oid == oidAnyExtKeyUsage:
			found.add(field, "asks for anyExtendedKeyUsage; name the usages")
		case seen[oid]:
			found.add(field, "asks for %s more than once", Quote(oid))
		}
		seen[oid] = true
	}
}
