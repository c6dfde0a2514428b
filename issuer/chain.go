package issuer

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
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

// Check answers nil when the chain is that of a CA with this key, complete from the CA to a
// self-signed root, and valid now: what someone who trusts the root would accept (RFC 5280,
// section 6.1). Otherwise it says all that is wrong.
func (c Chain) Check(public crypto.PublicKey, now time.Time) error {
	faults := []error{c.checkKey(public), (&CA{cert: c[0]}).check()}
	for i, cert := range c {
		faults = append(faults, checkDates(cert, now), checkAlgorithm(cert), checkExtensions(cert), checkUse(cert))
		if i > 0 {
			faults = append(faults, checkAuthority(cert, i))
		}
	}
	faults = append(faults, c.checkOrder())
	if err := errors.Join(faults...); err != nil {
		return err
	}
	return c.verify(now)
}

// checkKey requires the first certificate to be for the key.
func (c Chain) checkKey(public crypto.PublicKey) error {
	key, comparable := public.(interface{ Equal(crypto.PublicKey) bool })
	if !comparable {
		return fmt.Errorf("a key of the kind %T is not supported", public)
	}
	at := slices.IndexFunc(c, func(cert *x509.Certificate) bool { return key.Equal(cert.PublicKey) })
	switch {
	case at < 0:
		return fmt.Errorf("no certificate in the file is for the key in the token; the first is that of %s: have the request of this key certified, or name the key that was (CA_KEY_LABEL, CA_KEY_ID)", c[0].Subject)
	case at > 0:
		return fmt.Errorf("certificate %d (%s) is the one for the key in the token: it must be the first, and those that certify it follow", at+1, c[at].Subject)
	}
	return nil
}

func checkDates(cert *x509.Certificate, now time.Time) error { return (&CA{cert: cert}).ValidAt(now) }

// checkAlgorithm refuses signatures over digests that can be forged, a root's own too, since
// they show that it is of another age.
func checkAlgorithm(cert *x509.Certificate) error {
	switch a := cert.SignatureAlgorithm; a {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return fmt.Errorf("the certificate of %s is signed with %s, which can be forged: have it signed with SHA-256 or better", cert.Subject, a)
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
	return fmt.Errorf("the certificate of %s has critical extensions that TLS clients will not understand: %s", cert.Subject, strings.Join(ids, ", "))
}

// checkUse requires extendedKeyUsage, where a CA has it at all, to allow what is issued: crypto/x509 and
// OpenSSL take it for a limit on what the CA may certify.
func checkUse(cert *x509.Certificate) error {
	has := func(use x509.ExtKeyUsage) bool { return slices.Contains(cert.ExtKeyUsage, use) }
	limited := len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) > 0
	if limited && !has(x509.ExtKeyUsageAny) && !(has(x509.ExtKeyUsageServerAuth) && has(x509.ExtKeyUsageClientAuth)) {
		return fmt.Errorf("extendedKeyUsage of %s does not allow both serverAuth and clientAuth: leave the extension out of CA certificates", cert.Subject)
	}
	return nil
}

// checkAuthority requires the certificate at a place in the chain to be one that may certify the CAs before it.
func checkAuthority(cert *x509.Certificate, at int) error {
	limit := ConstraintsOf(cert).PathLength
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return fmt.Errorf("certificate %d (%s) is not a CA's: basicConstraints must say CA:TRUE", at+1, cert.Subject)
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("certificate %d (%s) may not sign certificates: keyUsage must hold keyCertSign", at+1, cert.Subject)
	case limit != NoPathLength && limit < at:
		return fmt.Errorf("certificate %d (%s) allows a path length of %d, and %d CA(s) follow it: certificates below them will not verify", at+1, cert.Subject, limit, at)
	}
	return nil
}

// checkOrder requires each certificate to be certified by the next, and the last by itself.
// That the signatures are right is for verify to say.
func (c Chain) checkOrder() error {
	for i, cert := range c[:len(c)-1] {
		if next := c[i+1]; !bytes.Equal(cert.RawIssuer, next.RawSubject) {
			return fmt.Errorf("certificate %d (%s) is issued by %s, but certificate %d is that of %s: put each before the one that certifies it", i+1, cert.Subject, cert.Issuer, i+2, next.Subject)
		}
	}
	if last := c[len(c)-1]; !bytes.Equal(last.RawIssuer, last.RawSubject) {
		return fmt.Errorf("the chain is not complete: %s is issued by %s, whose certificate is missing; append it, and so on up to the root", last.Subject, last.Issuer)
	}
	return nil
}

// verify has crypto/x509 verify the whole chain, with each signature.
func (c Chain) verify(now time.Time) error {
	for i, cert := range c {
		if err := cert.CheckSignatureFrom(c[min(i+1, len(c)-1)]); err != nil {
			return fmt.Errorf("the signature of certificate %d (%s) is not by the key of %s: %w", i+1, cert.Subject, cert.Issuer, err)
		}
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(c[len(c)-1])
	for _, cert := range c {
		between.AddCert(cert)
	}
	_, err := c[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fmt.Errorf("the chain of %s does not verify: %w", c[0].Subject, err)
	}
	return nil
}
