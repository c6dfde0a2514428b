package journal

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"hsm-signer/policy/pkcs10"
)

// subjectNames returns the attributes of the subject, each in two spellings: as an intent has it,
// with the value quoted, and with the bare value.
func subjectNames(cert *x509.Certificate) (quoted, bare []string, err error) {
	var rdns pkix.RDNSequence
	if rest, err := asn1.Unmarshal(cert.RawSubject, &rdns); err != nil || len(rest) > 0 {
		return nil, nil, fmt.Errorf("the subject cannot be read: %w", err)
	}
	for _, rdn := range rdns {
		for _, a := range rdn {
			name, value := pkcs10.AttributeName(a.Type), fmt.Sprint(a.Value)
			quoted = append(quoted, name+"="+pkcs10.Quote(value))
			bare = append(bare, name+"="+value)
		}
	}
	return quoted, bare, nil
}

// alternativeNames returns the subject alternative names in the order in which an intent has them.
func alternativeNames(cert *x509.Certificate) (all []string) {
	for _, name := range cert.DNSNames {
		all = append(all, "DNS:"+name)
	}
	for _, ip := range cert.IPAddresses {
		address, _ := netip.AddrFromSlice(ip) // a parsed certificate has 4 or 16 bytes
		all = append(all, "IP:"+address.String())
	}
	for _, uri := range cert.URIs {
		all = append(all, "URI:"+uri.String())
	}
	for _, address := range cert.EmailAddresses {
		all = append(all, "email:"+address)
	}
	return all
}

// namesOf returns the names that the certificate of an intent says, in the intent's spelling if the
// intent has the same ones.
func namesOf(cert *x509.Certificate, e Intent) (names []string, same bool, err error) {
	quoted, bare, err := subjectNames(cert)
	if err != nil {
		return nil, false, err
	}
	others := alternativeNames(cert)
	for _, subject := range [][]string{quoted, bare} {
		if slices.Equal(asWritten(e.Names), asWritten(slices.Concat(subject, others))) {
			return e.Names, true, nil
		}
	}
	return slices.Concat(quoted, others), false, nil
}

// checkNames returns an error if the intent's names are not those of its to-be-signed certificate.
func checkNames(e Intent) error {
	cert, err := ParseTBS(e.TBS)
	if err != nil {
		return err
	}
	names, same, err := namesOf(cert, e)
	if err == nil && !same {
		err = fmt.Errorf("the names are %q, but those of the to-be-signed certificate are %q",
			e.Names, names)
	}
	return err
}

// asWritten returns the names as a line has them: bytes that are not UTF-8 are replaced there.
func asWritten(names []string) (written []string) {
	for _, name := range names {
		text, _ := json.Marshal(name) // a string is always written
		written = append(written, string(text))
	}
	return written
}
