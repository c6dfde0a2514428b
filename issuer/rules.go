package issuer

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10"
)

// LintRules reports what the rules allow and the CA can never issue. A rule of which nothing can be
// issued is an error. Single names and key types are warnings.
func LintRules(ca *CA, offers []policy.Offer) (warnings []string, err error) {
	r := &ruleLinter{ca: ca, findings: map[string][]finding{}}
	var faults []error
	for _, offer := range offers {
		found, err := r.lint(offer)
		faults = append(faults, err)
		warnings = append(warnings, found...)
	}
	return warnings, errors.Join(faults...)
}

// A ruleLinter remembers what it has found: rules have much in common.
type ruleLinter struct {
	ca       *CA
	findings map[string][]finding // by name, or by key type and usages
}

// An offered name is one that a rule writes, and the names that stand for it: it can be issued if
// one of them can.
type offered struct {
	field, name string
	samples     []x509.Certificate
}

func (r *ruleLinter) lint(offer policy.Offer) (warnings []string, err error) {
	names := r.ca.offeredNames(offer)
	warnings, good, first := r.lintNames(offer.Rule, names)
	if good == nil {
		return nil, fmt.Errorf("rule %q: the CA %s can certify none of the rule's names: %s; "+
			"correct the rule, or use another CA",
			offer.Rule, r.ca.cert.Subject, first)
	}
	issuable := false
	for _, key := range offer.Keys {
		findings := r.lintKey(key, offer.Usages(key), *good)
		if issuable = issuable || len(findings) == 0; len(findings) > 0 {
			first = findings[0].message
			warnings = append(warnings,
				fmt.Sprintf("rule %s: grant.keys: %s %s", offer.Rule, key, ascii(first)))
		}
	}
	if !issuable {
		return nil, fmt.Errorf("rule %q: a certificate for none of its keys can be issued: %s; "+
			"correct the rule", offer.Rule, ascii(first))
	}
	return warnings, nil
}

// lintNames returns a name that can be issued, or nil, and why others cannot be.
func (r *ruleLinter) lintNames(rule string, names []offered) (warnings []string,
	good *x509.Certificate, first string) {
	for _, name := range names {
		var findings []finding
		issuable := len(name.samples) == 0
		for _, sample := range name.samples {
			if findings = r.lintName(sample); len(findings) == 0 {
				issuable, good = true, &sample
				break
			}
		}
		if !issuable {
			first = ascii(findings[0].message)
			warnings = append(warnings,
				fmt.Sprintf("rule %s: %s: %s %s", rule, name.field, name.name, first))
		}
	}
	return warnings, good, first
}

func (r *ruleLinter) lintName(sample x509.Certificate) []finding {
	key := fmt.Sprint(sample.DNSNames, sample.IPAddresses, sample.URIs, sample.EmailAddresses)
	return r.once("name "+key, func() []finding {
		return r.issue(sample, r.ca.linter.ca.PublicKey, []policy.Usage{policy.DigitalSignature})
	})
}

func (r *ruleLinter) lintKey(key pkcs10.KeyType, usages []policy.Usage,
	name x509.Certificate) []finding {
	return r.once(fmt.Sprint("key ", key, usages), func() []finding {
		public, err := sampleKey(key)
		if err != nil {
			return []finding{{fieldPublicKey, err.Error()}}
		}
		return r.issue(name, public, usages)
	})
}

func (r *ruleLinter) once(key string, find func() []finding) []finding {
	found, known := r.findings[key]
	if !known {
		found = find()
		r.findings[key] = found
	}
	return found
}

// issue returns why a certificate with the sample's names cannot be issued.
func (r *ruleLinter) issue(sample x509.Certificate, public crypto.PublicKey,
	usages []policy.Usage) []finding {
	keyUsage, extKeyUsage, err := x509Usages(usages)
	if err != nil {
		return []finding{{fieldUsages, err.Error()}}
	}
	keyID, err := keyIdentifier(public)
	if err != nil {
		return []finding{{fieldPublicKey, err.Error()}}
	}
	sample.SerialNumber, sample.SignatureAlgorithm = sampleSerial,
		DefaultAlgorithm(r.ca.cert.PublicKey)
	sample.KeyUsage, sample.ExtKeyUsage, sample.SubjectKeyId, sample.BasicConstraintsValid =
		keyUsage, extKeyUsage, keyID, true
	sample.NotBefore, sample.NotAfter = r.ca.datesFor(time.Now(), time.Hour)
	_, findings := r.ca.linter.issue(&sample, public)
	return findings
}

// offeredNames returns the names of a rule. Where a part of a name is open, the samples are such
// that one of them is permitted if any name is.
func (c *CA) offeredNames(offer policy.Offer) []offered {
	permitted, ranges := c.permitted()
	var all []offered
	for _, name := range offer.DNSNames {
		one := offered{field: "grant.dnsNames", name: name}
		for _, sample := range fill(name, permitted) {
			one.samples = append(one.samples, x509.Certificate{DNSNames: []string{sample}})
		}
		all = append(all, one)
	}
	for _, prefix := range offer.IPAddresses {
		all = append(all, offeredIPs(prefix.String(), addressesIn(prefix, ranges)))
	}
	if offer.PodAddresses {
		all = append(all, offeredIPs("pod", append(anyAddresses(), firstOf(ranges)...)))
	}
	for _, text := range offer.URIs {
		if uri, err := url.Parse(text); err == nil {
			all = append(all,
				offered{"grant.uris", text, []x509.Certificate{{URIs: []*url.URL{uri}}}})
		}
	}
	for _, email := range offer.EmailAddresses {
		one := offered{field: "grant.emailAddresses", name: email}
		mailbox, host, _ := strings.Cut(email, "@")
		for _, sample := range fill(host, permitted) {
			one.samples = append(one.samples,
				x509.Certificate{EmailAddresses: []string{mailbox + "@" + sample}})
		}
		all = append(all, one)
	}
	return all
}

func offeredIPs(name string, ips []netip.Addr) offered {
	one := offered{field: "grant.ipAddresses", name: name}
	for _, ip := range ips {
		one.samples = append(one.samples, x509.Certificate{IPAddresses: []net.IP{ip.AsSlice()}})
	}
	return one
}

// permitted lists the domains and ranges that any certificate of the chain permits.
func (c *CA) permitted() (domains []string, ranges []netip.Prefix) {
	for _, cert := range c.chain() {
		constraints := ConstraintsOf(cert)
		for _, domain := range slices.Concat(cert.PermittedDNSDomains,
			cert.PermittedEmailAddresses) {
			domains = append(domains,
				strings.TrimPrefix(domain[strings.LastIndex(domain, "@")+1:], "."))
		}
		ranges = append(ranges, constraints.Permitted.IPRanges...)
	}
	return domains, ranges
}

// fill returns names of the shape: one with nothing particular for each wildcard, and one within
// each domain that has any.
func fill(shape string, domains []string) []string {
	plain := strings.ReplaceAll(strings.ReplaceAll(shape, "**", "x"), "*", "x")
	samples := []string{plain}
	if !strings.Contains(shape, "*") {
		return samples
	}
	for _, domain := range domains {
		if sample, within := fillWithin(strings.Split(shape, "."),
			strings.Split(domain, ".")); within {
			samples = append(samples, sample)
		}
	}
	return samples
}

// fillWithin returns a name of the shape in the domain. Labels are compared from the right.
func fillWithin(shape, domain []string) (string, bool) {
	var name []string // reversed
	for i := range max(len(shape), len(domain)) {
		want, is := "**", "x"
		if i < len(shape) {
			want = shape[len(shape)-1-i]
		} else if shape[0] != "**" {
			return "", false // the domain is deeper than the shape
		}
		if i < len(domain) {
			is = domain[len(domain)-1-i]
		}
		switch {
		case want == "*" || want == "**":
			name = append(name, is)
		case i < len(domain) && !strings.EqualFold(want, is):
			return "", false
		default:
			name = append(name, want)
		}
	}
	slices.Reverse(name)
	return strings.Join(name, "."), true
}

// addressesIn returns addresses of the prefix: one at its start, and one within each range that it
// shares addresses with.
func addressesIn(prefix netip.Prefix, ranges []netip.Prefix) []netip.Addr {
	all := []netip.Addr{prefix.Addr()}
	for _, other := range ranges {
		if other.Overlaps(prefix) && other.Bits() > prefix.Bits() {
			all = append(all, other.Addr())
		}
	}
	return all
}

// anyAddresses are addresses of all kinds that pods have.
func anyAddresses() []netip.Addr {
	var all []netip.Addr
	for _, text := range []string{"10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1",
		"203.0.113.1", "fd00::1", "2001:db8::1"} {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

func firstOf(ranges []netip.Prefix) []netip.Addr {
	var all []netip.Addr
	for _, r := range ranges {
		all = append(all, r.Addr())
	}
	return all
}

// sampleKey returns a public key of the type. RSA keys are not half of a pair, which would take
// long to make.
func sampleKey(kind pkcs10.KeyType) (crypto.PublicKey, error) {
	if bits := kind.RSABits(); bits > 0 {
		modulus, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits)))
		if err != nil {
			return nil, err
		}
		modulus.SetBit(modulus, 0, 1).SetBit(modulus, bits-1, 1)
		return &rsa.PublicKey{N: modulus, E: 65537}, nil
	}
	key, err := kind.Generate()
	if err != nil {
		return nil, err
	}
	return key.Public(), nil
}

// GenericCA returns a CA without constraints, for a judgement without the real one.
var GenericCA = sync.OnceValues(func() (*CA, error) {
	key, err := pkcs10.ECDSAP256.Generate()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "any CA"},
		SubjectKeyId: []byte("any CA"),
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     caKeyUsage, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return ParseCA(encodePEM(der))
})
