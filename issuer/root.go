package issuer

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"
)

// CAProfile says what the certificate of a new CA holds.
type CAProfile struct {
	Subject     pkix.Name
	Lifetime    time.Duration // of a self-signed certificate; otherwise the root decides
	Constraints Constraints
}

// Check returns nil if certificates can be issued under a CA of this profile. It makes one with a
// throwaway key.
func (p CAProfile) Check() error {
	key, err := throwawayKey(nil, true)
	if err != nil {
		return err
	}
	text, err := SelfSign(p, key)
	if err != nil {
		return err
	}
	_, err = ParseCA(text)
	return err
}

// caKeyUsage is what a CA's key is for.
const caKeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign

// SelfSign returns the self-signed certificate, in PEM, of a new CA. It is for the ceremony.
func SelfSign(p CAProfile, key crypto.Signer) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	keyID, err := keyIdentifier(key.Public())
	if err != nil {
		return nil, err
	}
	constraints, err := p.Constraints.extension()
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
		KeyUsage:              caKeyUsage,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            p.Constraints.PathLength,
		MaxPathLenZero:        p.Constraints.PathLength == 0,
		SubjectKeyId:          keyID,
		AuthorityKeyId:        keyID,
		ExtraExtensions:       constraints,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the CA certificate: %w", err)
	}
	return encodePEM(der), nil
}

// Request returns a PKCS#10 request, in PEM, for an offline root to certify the CA. What the
// certificate is to hold is asked for in it (RFC 2986, extensionRequest); the root decides.
func Request(p CAProfile, key crypto.Signer) ([]byte, error) {
	extensions, err := requestedExtensions(p.Constraints)
	if err != nil {
		return nil, err
	}
	template := &x509.CertificateRequest{
		SignatureAlgorithm: DefaultAlgorithm(key.Public()),
		Subject:            p.Subject,
		ExtraExtensions:    extensions,
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("sign the request for a CA certificate: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// newSerial returns 128 random bits as a positive number (RFC 5280, section
// 4.1.2.2, allows at most 20 bytes).
func newSerial() (*big.Int, error) {
	limit := new(big.Int).Lsh(big.NewInt(1), 128)
	for {
		serial, err := rand.Int(rand.Reader, limit)
		if err != nil {
			return nil, fmt.Errorf("random serial number: %w", err)
		}
		if serial.Sign() > 0 {
			return serial, nil
		}
	}
}
