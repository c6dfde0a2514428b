package issuer

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"time"
)

// CAProfile says what a new CA's certificate holds.
type CAProfile struct {
	Subject  pkix.Name
	Lifetime time.Duration
}

// SelfSign returns the self-signed certificate, in PEM, of a new CA that issues
// end-entity certificates alone (path length 0). It is for the ceremony.
func SelfSign(p CAProfile, key crypto.Signer) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	keyID, err := keyIdentifier(key.Public())
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		SignatureAlgorithm:    DefaultAlgorithm(key.Public()),
		Subject:               p.Subject,
		NotBefore:             now.Add(-Backdate).UTC(),
		NotAfter:              now.Add(p.Lifetime).UTC(),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		SubjectKeyId:          keyID,
		AuthorityKeyId:        keyID,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the CA certificate: %w", err)
	}
	return encodePEM(der), nil
}
