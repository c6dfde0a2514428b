package journal

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

const (
	idBytes     = 4
	serialBytes = 20 // the most that RFC 5280, section 4.1.2.2, allows
)

func newID() (ID, error) {
	random := make([]byte, idBytes)
	for random[0] == 0 {
		if _, err := rand.Read(random); err != nil {
			return "", fmt.Errorf("random journal id: %w", err)
		}
		random[0] &= 0x7f
	}
	return ID(hex.EncodeToString(random)), nil
}

// NewSerial returns a serial number of 20 bytes: the journal's ID and 128 random bits. It is
// positive, since the ID begins with neither 00 nor a high bit.
func (id ID) NewSerial() (*big.Int, error) {
	serial := make([]byte, serialBytes)
	if n, err := hex.Decode(serial, []byte(id)); err != nil || n != idBytes {
		return nil, fmt.Errorf("%q is not the id of a journal", string(id))
	}
	if _, err := rand.Read(serial[idBytes:]); err != nil {
		return nil, fmt.Errorf("random serial number: %w", err)
	}
	return new(big.Int).SetBytes(serial), nil
}

// Carries reports whether a serial number begins with the id.
func (id ID) Carries(serial string) bool {
	return len(serial) == 2*serialBytes && strings.HasPrefix(serial, strings.ToUpper(string(id)))
}

// FormatSerial writes a serial number as openssl does: upper-case hex, whole bytes.
func FormatSerial(serial *big.Int) string {
	return strings.ToUpper(hex.EncodeToString(serial.Bytes()))
}

// ParseTBS parses a to-be-signed certificate. The result has no signature.
func ParseTBS(tbs []byte) (*x509.Certificate, error) {
	var parts []asn1.RawValue
	rest, err := asn1.Unmarshal(tbs, &parts)
	switch {
	case err != nil || len(parts) < 3:
		return nil, errors.New("the to-be-signed certificate cannot be read")
	case len(rest) > 0:
		return nil, fmt.Errorf("%d bytes follow the to-be-signed certificate", len(rest))
	}
	const algorithm = 2 // version, serial number, signature (RFC 5280, section 4.1)
	der, err := asn1.Marshal(struct {
		TBS, Algorithm asn1.RawValue
		Signature      asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, parts[algorithm], asn1.BitString{}})
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the to-be-signed certificate cannot be read: %w", err)
	case cert.SerialNumber.Sign() <= 0:
		return nil, fmt.Errorf("the serial number %s is not positive", cert.SerialNumber)
	}
	return cert, nil
}

// tbsOf returns the to-be-signed part of a certificate.
func tbsOf(certificate []byte) ([]byte, error) {
	var c struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	rest, err := asn1.Unmarshal(certificate, &c)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the certificate cannot be read: %w", err)
	case len(rest) > 0:
		return nil, fmt.Errorf("%d bytes follow the certificate", len(rest))
	}
	return c.TBS.FullBytes, nil
}

// algorithmNamed is the inverse of [x509.SignatureAlgorithm.String], of those that are not broken.
func algorithmNamed(name string) x509.SignatureAlgorithm {
	for _, a := range []x509.SignatureAlgorithm{
		x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.SHA256WithRSAPSS,
		x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519,
	} {
		if a.String() == name {
			return a
		}
	}
	return x509.UnknownSignatureAlgorithm
}
