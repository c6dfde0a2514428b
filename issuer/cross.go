package issuer

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Cross is a cross-certificate that is still to be signed: the certificate of the next CA by the
// present one. With it, clients that trust either root alone verify what the next CA issues.
type Cross struct {
	by       *CA
	next     *x509.Certificate
	template *x509.Certificate
	linted   *x509.Certificate // by a throwaway key
}

// NewCross plans the certificate of the next CA by another one, valid from now on. Name, key and
// subjectKeyIdentifier are those of the next CA's self-signed certificate. Nothing else is wider
// than in the certificates of both, and the path length is 0. It returns an error if one of them
// does not allow the certificate, or if clients would refuse what is issued under it.
func NewCross(by *CA, next *x509.Certificate, now time.Time) (*Cross, error) {
	if err := checkCross(by, next, now); err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	c := &Cross{by: by, next: next, template: &x509.Certificate{
		SerialNumber:          serial,
		SignatureAlgorithm:    DefaultAlgorithm(by.cert.PublicKey),
		RawSubject:            next.RawSubject,
		NotBefore:             now.Add(-Backdate).UTC(),
		NotAfter:              next.NotAfter.UTC(),
		KeyUsage:              caKeyUsage & next.KeyUsage,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		SubjectKeyId:          next.SubjectKeyId,
		AuthorityKeyId:        by.cert.SubjectKeyId,
		ExtraExtensions:       crossNames(by.cert, next),
	}}
	for _, cert := range append(by.chain(), next) {
		c.template.NotBefore = latest(c.template.NotBefore, cert.NotBefore.UTC())
		c.template.NotAfter = earliest(c.template.NotAfter, cert.NotAfter.UTC())
	}
	c.template.ExtKeyUsage, c.template.UnknownExtKeyUsage = crossUses(by.cert, next)
	return c, c.lint()
}

// checkCross returns an error unless one CA may certify the next, which has a self-signed
// certificate.
func checkCross(by *CA, next *x509.Certificate, now time.Time) error {
	root := Chain{next}
	if !root.isRoot(0) {
		return fmt.Errorf("the certificate of %s is issued by %s: only that of a self-signed CA "+
			"can be cross-signed, since clients that trust the root above another CA would also "+
			"need its own certificate; have clients trust the roots of both CAs", next.Subject,
			next.Issuer)
	}
	if err := next.CheckSignature(next.SignatureAlgorithm, next.RawTBSCertificate,
		next.Signature); err != nil {
		return fmt.Errorf("the certificate of %s is not signed by its own key: %w", next.Subject,
			err)
	}
	ca, err := root.load()
	if err != nil {
		return err
	}
	return errors.Join(by.allowsNext(next), ca.distinctFrom(by), by.ValidAt(now), ca.ValidAt(now))
}

// allowsNext returns an error unless the path lengths of the CA's chain allow another CA below it,
// and its name constraints those of that CA.
func (c *CA) allowsNext(next *x509.Certificate) error {
	for i, cert := range c.chain() {
		if limit := ConstraintsOf(cert).PathLength; limit != NoPathLength && limit <= i {
			return fmt.Errorf("the certificate of %s allows a path length of %d, and %d CA(s) "+
				"would follow it: have clients trust the roots of both CAs instead "+
				"(docs/rotation.md); only a CA that was created with a --path-length of 1 or more "+
				"can cross-sign", cert.Subject, limit, i+1)
		}
	}
	own, its := ConstraintsOf(c.cert), ConstraintsOf(next)
	if constrainsNames(next) && !its.asStrictAs(own) {
		return fmt.Errorf("the name constraints of %s are wider than those of %s (%s, and %s): "+
			"have clients trust the roots of both CAs instead (docs/rotation.md)", next.Subject,
			c.cert.Subject, its, own)
	}
	return nil
}

// crossNames returns the extension nameConstraints of the next CA, or else that of the CA that
// certifies it; none if neither has one.
func crossNames(by, next *x509.Certificate) []pkix.Extension {
	for _, cert := range []*x509.Certificate{next, by} {
		for _, extension := range cert.Extensions {
			if extension.Id.Equal(oidNameConstraints) {
				return []pkix.Extension{extension}
			}
		}
	}
	return nil
}

// crossUses returns the extended key usages that both CAs allow. A CA that lists none allows all.
func crossUses(by, next *x509.Certificate) ([]x509.ExtKeyUsage, []asn1.ObjectIdentifier) {
	switch {
	case !limitsUse(by):
		return next.ExtKeyUsage, next.UnknownExtKeyUsage
	case !limitsUse(next):
		return by.ExtKeyUsage, by.UnknownExtKeyUsage
	}
	known := func(use x509.ExtKeyUsage) bool { return slices.Contains(by.ExtKeyUsage, use) }
	unknown := func(use asn1.ObjectIdentifier) bool {
		return slices.ContainsFunc(by.UnknownExtKeyUsage, use.Equal)
	}
	return kept(next.ExtKeyUsage, known), kept(next.UnknownExtKeyUsage, unknown)
}

// kept returns the elements for which keep reports true.
func kept[T any](all []T, keep func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(all), func(one T) bool { return !keep(one) })
}

// lint makes the certificate with a throwaway key, and returns an error if clients would refuse
// certificates under it.
func (c *Cross) lint() (err error) {
	copied := c.by.linter
	if c.linted, err = copied.create(c.template, c.next.PublicKey); err != nil {
		return fmt.Errorf("make the cross-certificate with a throwaway key: %w", err)
	}
	_, err = Chain{c.linted, copied.ca}.load()
	return err
}

// Sign has the key of the CA sign what was linted. It returns the cross-certificate, followed by
// the chain of the CA that has signed it, after it has verified both: as an issuer's CA, for
// clients that trust the last certificate of the chain alone, and for those that trust the next
// CA's own certificate alone.
func (c *Cross) Sign(key crypto.Signer) (Chain, error) {
	if err := c.by.Matches(key.Public()); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, c.template, c.by.cert, c.next.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("sign the cross-certificate: %w", err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the cross-certificate: %w", err)
	}
	if !bytes.Equal(made.RawTBSCertificate, c.linted.RawTBSCertificate) {
		return nil, errors.New("the cross-certificate differs from the one that was linted")
	}
	chain := append(Chain{made}, c.by.chain()...)
	ca, err := chain.load()
	if err != nil {
		return nil, err
	}
	return chain, errors.Join(chain.checkKey(c.next.PublicKey),
		Anchors{chain[len(chain)-1]}.Trust(ca), Anchors{c.next}.Trust(ca))
}
