package issuer

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10"
)

// A CA is the certificate that certificates are issued under, and its chain.
type CA struct {
	cert          *x509.Certificate
	above         []*x509.Certificate // those that certify it
	intermediates []byte              // PEM: what follows the leaf, without the root
	linter        *linter
}

// ParseCA reads PEM: the CA's certificate first, then those that certify it, each signed by the
// next. It refuses a CA under which clients would refuse certificates. Without a root, the last
// certificate is taken to be trusted.
func ParseCA(text []byte) (*CA, error) {
	chain, err := ReadChain(text)
	if err != nil {
		return nil, err
	}
	return chain.load()
}

// HasRoot reports whether the CA was read with its root, which clients trust.
func (c *CA) HasRoot() bool { return Chain(c.chain()).checkComplete() == nil }

// byteOrderMark is what some editors write at the start of a file.
var byteOrderMark = []byte("\xef\xbb\xbf")

func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	if bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff")) {
		return nil, errors.New("the file is UTF-16: save it as UTF-8")
	}
	begin := []byte("-----BEGIN ")
	text = bytes.ReplaceAll(text, slices.Concat(byteOrderMark, begin), begin)
	blocks := bytes.Count(text, begin)
	var certs []*x509.Certificate
	for len(bytes.TrimSpace(text)) > 0 {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, errors.New("there is text that is not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil,
				fmt.Errorf("there is a PEM block of the type %q; only CERTIFICATE belongs here",
					block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
		text = rest
	}
	switch {
	case len(certs) == 0:
		return nil, errors.New("there is no certificate")
	case len(certs) < blocks:
		return nil, fmt.Errorf("the file has %d PEM blocks, of which %d can be read: each BEGIN "+
			"and END line must be a line of its own, and the base64 between them whole", blocks,
			len(certs))
	}
	return certs, nil
}

// check requires what RFC 5280, section 4.2.1, requires of a CA's certificate.
func (c *CA) check() error {
	switch cert := c.cert; {
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return fmt.Errorf("the first certificate (%s) is not a CA's: basicConstraints must "+
			"say CA:TRUE", cert.Subject)
	case cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("the first certificate (%s) may not sign certificates: keyUsage must "+
			"hold keyCertSign", cert.Subject)
	case len(cert.SubjectKeyId) == 0:
		return fmt.Errorf("the first certificate (%s) has no subjectKeyIdentifier, which issued "+
			"certificates must refer to", cert.Subject)
	}
	return nil
}

// Certificate returns the CA's own certificate.
func (c *CA) Certificate() *x509.Certificate { return c.cert }

// KeySHA256 returns the SHA-256 of the CA's SubjectPublicKeyInfo in DER. It names the CA, whatever
// certificate it has.
func (c *CA) KeySHA256() [sha256.Size]byte {
	return sha256.Sum256(c.cert.RawSubjectPublicKeyInfo)
}

// Equal reports whether the other has the same certificate and chain.
func (c *CA) Equal(other *CA) bool {
	return c.cert.Equal(other.cert) &&
		slices.EqualFunc(c.above, other.above, (*x509.Certificate).Equal)
}

// AnchoredIn reports whether one of these certificates is the CA's, or one above it that it was
// read with: who trusts them trusts what is issued.
func (c *CA) AnchoredIn(trusted []*x509.Certificate) bool {
	return slices.ContainsFunc(trusted, func(anchor *x509.Certificate) bool {
		return anchor.Equal(c.cert) || slices.ContainsFunc(c.above, anchor.Equal) ||
			c.alsoHas(anchor)
	})
}

// alsoHas reports whether this is another certificate of the same CA, such as the self-signed one
// of a CA that is cross-signed, under which clients accept all that this one lets it issue.
func (c *CA) alsoHas(other *x509.Certificate) bool {
	names := ConstraintsOf(other)
	if c.Matches(other.PublicKey) != nil || !bytes.Equal(c.cert.RawSubject, other.RawSubject) ||
		!bytes.Equal(c.cert.SubjectKeyId, other.SubjectKeyId) ||
		!slices.ContainsFunc(c.constraints(), func(own Constraints) bool {
			return own.asStrictAs(names)
		}) {
		return false
	}
	_, err := Chain{other}.load()
	return err == nil
}

// Matches returns nil if the CA's certificate is for this key.
func (c *CA) Matches(public crypto.PublicKey) error {
	key, ok := public.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(c.cert.PublicKey) {
		return fmt.Errorf("the key does not belong to the CA certificate %s: name the key that "+
			"belongs to it, or the certificate that belongs to the key", c.cert.Subject)
	}
	return nil
}

// ValidAt returns nil if the CA may issue at that time: its certificate is valid, and so are those
// above it that it was read with.
func (c *CA) ValidAt(now time.Time) error {
	for _, cert := range c.chain() {
		switch {
		case now.Before(cert.NotBefore):
			return fmt.Errorf("the CA certificate %s is not valid before %s", cert.Subject,
				cert.NotBefore.Format(time.RFC3339))
		case !now.Before(cert.NotAfter):
			return fmt.Errorf("the CA certificate %s expired at %s", cert.Subject,
				cert.NotAfter.Format(time.RFC3339))
		}
	}
	return nil
}

// datesFor returns the dates of a certificate that is issued now, within those of the CA. If the CA
// is not valid now, they are those of a certificate that was issued while it was.
func (c *CA) datesFor(now time.Time, lifetime time.Duration) (notBefore, notAfter time.Time) {
	notBefore, notAfter = latest(now.Add(-Backdate), c.cert.NotBefore),
		earliest(now.Add(lifetime), c.cert.NotAfter)
	if !notBefore.Before(notAfter) {
		notBefore, notAfter = c.cert.NotBefore, c.cert.NotAfter
	}
	return notBefore.UTC(), notAfter.UTC()
}

// podDatesFor returns the dates of a pod's certificate that is issued now: its lifetime, within the
// dates of the CA. It returns an error if the CA ends before the least lifetime that the API has.
func (c *CA) podDatesFor(now time.Time, lifetime time.Duration) (notBefore, notAfter time.Time,
	err error) {
	notBefore = latest(now.Add(-PodBackdate).Truncate(time.Second), c.cert.NotBefore)
	notAfter = earliest(notBefore.Add(lifetime), c.cert.NotAfter)
	if notAfter.Sub(notBefore) < policy.MinPodLifetime {
		return notBefore, notAfter, fmt.Errorf("the CA certificate %s expires at %s, and a pod's "+
			"certificate lives for %s at least: renew the CA", c.cert.Subject,
			c.cert.NotAfter.Format(time.RFC3339), policy.MinPodLifetime)
	}
	return notBefore.UTC(), notAfter.UTC(), nil
}

// chain returns the CA's certificate and those above it.
func (c *CA) chain() []*x509.Certificate { return append([]*x509.Certificate{c.cert}, c.above...) }

// chainOf returns an issued certificate, in DER, and those above it in PEM, without the root.
func (c *CA) chainOf(der []byte) []byte { return append(encodePEM(der), c.intermediates...) }

// lintSample returns an error if every certificate under the CA would fail.
func (c *CA) lintSample() error {
	public, err := sampleKey(pkcs10.ECDSAP256)
	if err != nil {
		return err
	}
	keyID, err := keyIdentifier(public)
	if err != nil {
		return err
	}
	template := &x509.Certificate{ // without alternative names, which name constraints are about
		SerialNumber: sampleSerial, SignatureAlgorithm: DefaultAlgorithm(c.cert.PublicKey),
		Subject:  pkix.Name{CommonName: "sample"},
		KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth,
			x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, SubjectKeyId: keyID,
	}
	template.NotBefore, template.NotAfter = c.datesFor(time.Now(), time.Hour)
	leaf, err := c.linter.create(template, public)
	if err != nil {
		return err
	}
	findings := append(c.linter.checkChain(leaf, template), c.linter.lint(leaf.Raw)...)
	if len(findings) > 0 {
		return fmt.Errorf("no certificate under %s would be accepted: %s", c.cert.Subject,
			ascii(findings[0].message))
	}
	return nil
}
