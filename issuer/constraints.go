package issuer

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Constraints are what a CA's certificate allows it to issue.
type Constraints struct {
	PathLength int // how many CAs may follow it on the way to an end entity
	Permitted  NameSpace
	Excluded   NameSpace
}

// NoPathLength is the path length of a certificate that does not limit it.
const NoPathLength = -1

// A NameSpace is a set of names (RFC 5280, section 4.2.1.10).
type NameSpace struct {
	DNSDomains []string       // each with all below it
	IPRanges   []netip.Prefix // as a certificate holds them: with nothing set behind the prefix
	// of a certificate that was read: what else is in it, such as "email:example.com"
	Others []string
}

func (s NameSpace) empty() bool {
	return len(s.DNSDomains) == 0 && len(s.IPRanges) == 0 && len(s.Others) == 0
}

// String lists the names.
func (s NameSpace) String() string {
	var words []string
	for _, domain := range s.DNSDomains {
		words = append(words, "DNS:"+domain)
	}
	for _, prefix := range s.IPRanges {
		words = append(words, "IP:"+prefix.String())
	}
	return strings.Join(append(words, s.Others...), ", ")
}

// String says the constraints in one line.
func (c Constraints) String() string {
	text := "CA:TRUE, any path length"
	if c.PathLength >= 0 {
		text = fmt.Sprintf("CA:TRUE, path length %d", c.PathLength)
	}
	if !c.Permitted.empty() {
		text += "; permitted are " + c.Permitted.String()
	}
	if !c.Excluded.empty() {
		text += "; excluded are " + c.Excluded.String()
	}
	return text
}

// ConstraintsOf reads the constraints of a CA's certificate.
func ConstraintsOf(cert *x509.Certificate) Constraints {
	c := Constraints{
		PathLength: NoPathLength,
		Permitted: namesOf(cert.PermittedDNSDomains, cert.PermittedIPRanges,
			cert.PermittedEmailAddresses, cert.PermittedURIDomains),
		Excluded: namesOf(cert.ExcludedDNSDomains, cert.ExcludedIPRanges,
			cert.ExcludedEmailAddresses, cert.ExcludedURIDomains),
	}
	if cert.MaxPathLen > 0 || cert.MaxPathLenZero {
		c.PathLength = cert.MaxPathLen
	}
	return c
}

func namesOf(domains []string, ranges []*net.IPNet, emails, uris []string) NameSpace {
	s := NameSpace{DNSDomains: domains}
	for _, r := range ranges {
		if address, ok := netip.AddrFromSlice(r.IP); ok {
			ones, _ := r.Mask.Size()
			s.IPRanges = append(s.IPRanges, netip.PrefixFrom(address, ones))
		}
	}
	for _, email := range emails {
		s.Others = append(s.Others, "email:"+email)
	}
	for _, uri := range uris {
		s.Others = append(s.Others, "URI:"+uri)
	}
	return s
}

// Object identifiers of extensions (RFC 5280, section 4.2.1).
var (
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidNameConstraints  = asn1.ObjectIdentifier{2, 5, 29, 30}
	oidAuthorityKeyID   = asn1.ObjectIdentifier{2, 5, 29, 35}
)

// requestedExtensions are those of a request: basicConstraints, keyUsage, and nameConstraints
// where there are any; all are critical.
func requestedExtensions(c Constraints) ([]pkix.Extension, error) {
	basic, err := asn1.Marshal(struct {
		CA         bool
		PathLength int
	}{true, c.PathLength})
	if err != nil {
		return nil, fmt.Errorf("basicConstraints: %w", err)
	}
	// keyCertSign is bit 5 and cRLSign bit 6, counted from the left.
	usage, err := asn1.Marshal(asn1.BitString{Bytes: []byte{1<<(7-5) | 1<<(7-6)}, BitLength: 7})
	if err != nil {
		return nil, fmt.Errorf("keyUsage: %w", err)
	}
	names, err := c.extension()
	return append([]pkix.Extension{
		{Id: oidBasicConstraints, Critical: true, Value: basic},
		{Id: oidKeyUsage, Critical: true, Value: usage},
	}, names...), err
}

// extension is nameConstraints, which RFC 5280 wants to be critical; or none, since an empty
// one is forbidden.
func (c Constraints) extension() ([]pkix.Extension, error) {
	if len(c.Permitted.Others)+len(c.Excluded.Others) > 0 {
		return nil, errors.New("only DNS domains and IP ranges can be permitted or excluded")
	}
	if c.Permitted.empty() && c.Excluded.empty() {
		return nil, nil
	}
	value, err := asn1.Marshal(struct {
		Permitted []subtree `asn1:"optional,omitempty,tag:0"`
		Excluded  []subtree `asn1:"optional,omitempty,tag:1"`
	}{c.Permitted.subtrees(), c.Excluded.subtrees()})
	if err != nil {
		return nil, fmt.Errorf("nameConstraints: %w", err)
	}
	return []pkix.Extension{{Id: oidNameConstraints, Critical: true, Value: value}}, nil
}

// A subtree is a GeneralSubtree: a GeneralName and nothing else.
type subtree struct{ Base asn1.RawValue }

// subtrees uses GeneralName's choices dNSName [2] and iPAddress [7] (address and mask).
func (s NameSpace) subtrees() []subtree {
	const dnsName, ipAddress = 2, 7
	var all []subtree
	for _, domain := range s.DNSDomains {
		all = append(all,
			subtree{asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: dnsName,
				Bytes: []byte(domain)}})
	}
	for _, prefix := range s.IPRanges {
		address := prefix.Addr().AsSlice()
		mask := net.CIDRMask(prefix.Bits(), 8*len(address))
		all = append(all,
			subtree{asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: ipAddress,
				Bytes: append(address, mask...)}})
	}
	return all
}
