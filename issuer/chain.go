package issuer

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
)

// A Chain is a CA's certificate and those that certify it, each by the next, as a file
// holds them.
type Chain []*x509.Certificate

// ReadChain reads PEM. It checks nothing.
func ReadChain(text []byte) (Chain, error) { return parseCertificates(text) }

// PEM is the chain and nothing else, for CA_CERT_FILE.
func (c Chain) PEM() []byte {
	var text []byte
	for _, cert := range c {
		text = append(text, encodePEM(cert.Raw)...)
	}
	return text
}

// Check returns nil if the chain is that of a CA with this key, complete from the CA to a
// self-signed root, and valid now. Otherwise the error lists all that is wrong.
func (c Chain) Check(public crypto.PublicKey, now time.Time) error {
	faults := []error{c.checkKey(public)}
	for _, cert := range c {
		faults = append(faults, checkDates(cert, now))
	}
	_, err := c.load()
	return errors.Join(append(faults, err, c.checkComplete())...)
}

// load returns the CA of the chain if its certificates are such as crypto/x509 and OpenSSL accept
// when the last one alone is trusted (RFC 5280, section 6.1), and if certificates can be issued
// under it. It ignores dates: they are judged when a certificate is issued.
func (c Chain) load() (*CA, error) {
	ca := &CA{cert: c[0], above: c[1:]}
	faults := []error{ca.check()}
	for i, cert := range c {
		faults = append(faults, c.checkAlgorithm(i), checkExtensions(cert),
			checkNameConstraints(cert), checkUse(cert), checkSubject(cert, i))
		if i > 0 {
			faults = append(faults, checkAuthority(cert, i))
		}
	}
	faults = append(faults, c.checkOrder())
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if err := errors.Join(c.checkSignatures(), c.checkKeyIDs()); err != nil {
		return nil, err
	}
	for i, cert := range c {
		if !c.isRoot(i) {
			ca.intermediates = append(ca.intermediates, encodePEM(cert.Raw)...)
		}
	}
	var err error
	if ca.linter, err = newLinter(c); err != nil {
		return nil, err
	}
	if err := ca.lintSample(); err != nil {
		return nil, err
	}
	return ca, nil
}

// isRoot reports whether a certificate is the chain's root: the last one, if it names itself as its
// issuer and not another key.
func (c Chain) isRoot(i int) bool {
	cert := c[i]
	return i == len(c)-1 && bytes.Equal(cert.RawIssuer, cert.RawSubject) &&
		(len(cert.AuthorityKeyId) == 0 || bytes.Equal(cert.AuthorityKeyId, cert.SubjectKeyId))
}

// checkKey requires the first certificate to be for the key.
func (c Chain) checkKey(public crypto.PublicKey) error {
	key, comparable := public.(interface{ Equal(crypto.PublicKey) bool })
	if !comparable {
		return fmt.Errorf("a key of the kind %T is not supported", public)
	}
	at := slices.IndexFunc(c, func(cert *x509.Certificate) bool {
		return key.Equal(cert.PublicKey)
	})
	switch {
	case at < 0:
		return fmt.Errorf("no certificate in the file is for the key in the token; the first is "+
			"that of %s: have the request of this key certified, or name the key that was "+
			"(CA_KEY_LABEL, CA_KEY_ID)", c[0].Subject)
	case at > 0:
		return fmt.Errorf("certificate %d (%s) is the one for the key in the token: it must be "+
			"the first, and those that certify it follow", at+1, c[at].Subject)
	}
	return nil
}

func checkDates(cert *x509.Certificate,
	now time.Time) error {
	return (&CA{cert: cert}).ValidAt(now)
}

// checkAlgorithm refuses signatures over digests that can be forged. Clients do not verify a root's
// own signature, and many roots have one over SHA-1.
func (c Chain) checkAlgorithm(i int) error {
	switch a := c[i].SignatureAlgorithm; a {
	case x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1:
		if c.isRoot(i) {
			return nil
		}
		return forgeable(c[i])
	case x509.MD2WithRSA, x509.MD5WithRSA:
		return forgeable(c[i])
	}
	return nil
}

func forgeable(cert *x509.Certificate) error {
	return fmt.Errorf("the certificate of %s is signed with %s, which can be forged: have it "+
		"signed with SHA-256 or better", cert.Subject, cert.SignatureAlgorithm)
}

// checkSubject requires a name: RFC 5280, section 4.1.2.6, asks for one in a CA's certificate.
func checkSubject(cert *x509.Certificate, i int) error {
	if len(cert.Subject.Names) == 0 {
		return fmt.Errorf("certificate %d has no name: the subject of a CA must not be empty", i+1)
	}
	return nil
}

// checkNameConstraints refuses kinds of constraints that crypto/x509 cannot apply. Critical ones
// are refused as critical extensions are.
func checkNameConstraints(cert *x509.Certificate) error {
	const email, dns, uri, ip = 1, 2, 6, 7 // choices of GeneralName
	for _, extension := range cert.Extensions {
		if !extension.Id.Equal(oidNameConstraints) || extension.Critical {
			continue
		}
		var names struct {
			Permitted []subtree `asn1:"optional,omitempty,tag:0"`
			Excluded  []subtree `asn1:"optional,omitempty,tag:1"`
		}
		if rest, err := asn1.Unmarshal(extension.Value, &names); err != nil || len(rest) > 0 {
			return fmt.Errorf("the name constraints of %s cannot be read", cert.Subject)
		}
		for _, tree := range slices.Concat(names.Permitted, names.Excluded) {
			if !slices.Contains([]int{email, dns, uri, ip}, tree.Base.Tag) {
				return fmt.Errorf("the certificate of %s constrains names other than DNS names, "+
					"IP addresses, email addresses and URIs, which not every client can apply",
					cert.Subject)
			}
		}
	}
	return nil
}

func checkExtensions(cert *x509.Certificate) error {
	if len(cert.UnhandledCriticalExtensions) == 0 {
		return nil
	}
	var ids []string
	for _, id := range cert.UnhandledCriticalExtensions {
		ids = append(ids, id.String())
	}
	return fmt.Errorf("the certificate of %s has critical extensions that TLS clients will not "+
		"understand: %s", cert.Subject, strings.Join(ids, ", "))
}

// checkUse requires extendedKeyUsage, where a CA has it at all, to allow what is issued:
// crypto/x509 and OpenSSL take it for a limit on what the CA may certify. anyExtendedKeyUsage is
// not enough for OpenSSL.
func checkUse(cert *x509.Certificate) error {
	has := func(use x509.ExtKeyUsage) bool { return slices.Contains(cert.ExtKeyUsage, use) }
	if limitsUse(cert) && !(has(x509.ExtKeyUsageServerAuth) && has(x509.ExtKeyUsageClientAuth)) {
		return fmt.Errorf("extendedKeyUsage of %s does not allow both serverAuth and clientAuth: "+
			"leave the extension out of CA certificates", cert.Subject)
	}
	return nil
}

// limitsUse reports whether a CA's certificate has extendedKeyUsage.
func limitsUse(cert *x509.Certificate) bool {
	return len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) > 0
}

// checkAuthority requires the certificate at a place in the chain to be one that may certify the
// CAs before it.
func checkAuthority(cert *x509.Certificate, at int) error {
	limit := ConstraintsOf(cert).PathLength
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return fmt.Errorf("certificate %d (%s) is not a CA's: basicConstraints must say CA:TRUE",
			at+1, cert.Subject)
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("certificate %d (%s) may not sign certificates: keyUsage must hold "+
			"keyCertSign", at+1, cert.Subject)
	case limit != NoPathLength && limit < at:
		return fmt.Errorf("certificate %d (%s) allows a path length of %d, and %d CA(s) follow "+
			"it: certificates below them will not verify", at+1, cert.Subject, limit, at)
	}
	return nil
}

// checkOrder requires each certificate to name the next as its issuer, in the same encoding, which
// crypto/x509 compares.
func (c Chain) checkOrder() error {
	for i, cert := range c[:len(c)-1] {
		next := c[i+1]
		switch {
		case bytes.Equal(cert.RawIssuer, next.RawSubject):
		case cert.Issuer.String() == next.Subject.String():
			return fmt.Errorf("certificate %d (%s) names its issuer in another encoding than "+
				"certificate %d does, so not every client verifies it: "+
				"take the issuer's certificate with the same encoding, or have certificate %d "+
				"issued again", i+1, cert.Subject, i+2, i+1)
		default:
			return fmt.Errorf("certificate %d (%s) is issued by %s, but certificate %d is that "+
				"of %s: put each before the one that certifies it", i+1, cert.Subject, cert.Issuer,
				i+2, next.Subject)
		}
	}
	return nil
}

// checkComplete requires the chain to end with a root.
func (c Chain) checkComplete() error {
	if last := c[len(c)-1]; !c.isRoot(len(c) - 1) {
		return fmt.Errorf("the chain is not complete: %s is issued by %s, whose certificate is "+
			"missing; append it, and so on up to the root", last.Subject, last.Issuer)
	}
	return nil
}

// checkSignatures verifies each signature: by the next certificate, and a root's by itself. A
// root's over SHA-1 says nothing and is ignored.
func (c Chain) checkSignatures() error {
	for i, cert := range c {
		var err error
		switch {
		case i < len(c)-1:
			err = cert.CheckSignatureFrom(c[i+1])
		case c.isRoot(i) && !isSHA1(cert.SignatureAlgorithm):
			err = cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate,
				cert.Signature)
		}
		if err != nil {
			return fmt.Errorf("the signature of certificate %d (%s) is not by the key of %s: %w",
				i+1, cert.Subject, cert.Issuer, err)
		}
	}
	return nil
}

func isSHA1(a x509.SignatureAlgorithm) bool {
	return a == x509.SHA1WithRSA || a == x509.ECDSAWithSHA1 || a == x509.DSAWithSHA1
}

// checkKeyIDs requires authorityKeyIdentifier, where there is one, to name the next certificate.
// OpenSSL does, by the key identifier and by issuer and serial number.
func (c Chain) checkKeyIDs() error {
	for i, cert := range c[:len(c)-1] {
		next := c[i+1]
		if len(cert.AuthorityKeyId) > 0 && len(next.SubjectKeyId) > 0 &&
			!bytes.Equal(cert.AuthorityKeyId, next.SubjectKeyId) {
			return fmt.Errorf("certificate %d (%s) names another key in authorityKeyIdentifier "+
				"than certificate %d (%s) has in subjectKeyIdentifier: take the certificate "+
				"that it names", i+1, cert.Subject, i+2, next.Subject)
		}
		if serial := authoritySerial(cert); serial != nil && serial.Cmp(next.SerialNumber) != 0 {
			return fmt.Errorf("certificate %d (%s) names the serial number %x in "+
				"authorityKeyIdentifier, and certificate %d (%s) has %x: take the certificate "+
				"that it names", i+1, cert.Subject, serial, i+2, next.Subject, next.SerialNumber)
		}
	}
	return nil
}

// authoritySerial returns the serial number in authorityKeyIdentifier, or nil.
func authoritySerial(cert *x509.Certificate) *big.Int {
	for _, extension := range cert.Extensions {
		if !extension.Id.Equal(oidAuthorityKeyID) {
			continue
		}
		var id struct {
			KeyID  []byte        `asn1:"optional,tag:0"`
			Issuer asn1.RawValue `asn1:"optional,tag:1"`
			Serial *big.Int      `asn1:"optional,tag:2"`
		}
		if _, err := asn1.Unmarshal(extension.Value, &id); err == nil {
			return id.Serial
		}
	}
	return nil
}
