package calico

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
)

// KeyAlgorithms and SignatureAlgorithms are Calico's names, its default first. A key and a
// signature algorithm match if both are RSA or both are ECDSA.
var (
	KeyAlgorithms = []string{"RSAWithSize2048", "RSAWithSize4096", "RSAWithSize8192",
		"ECDSAWithCurve256", "ECDSAWithCurve384", "ECDSAWithCurve521"}
	SignatureAlgorithms = []string{"SHA256WithRSA", "SHA384WithRSA", "SHA512WithRSA",
		"ECDSAWithSHA256", "ECDSAWithSHA384", "ECDSAWithSHA512"}
)

// NewKey makes a key of the algorithm with that name; "" is Calico's default. RSA keys of 8192 bits
// take up to a minute.
func NewKey(algorithm string) (crypto.Signer, error) {
	switch algorithm {
	case "", "RSAWithSize2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "RSAWithSize4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	case "RSAWithSize8192":
		return rsa.GenerateKey(rand.Reader, 8192)
	case "ECDSAWithCurve256":
		return NewP256Key(), nil
	case "ECDSAWithCurve384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ECDSAWithCurve521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	}
	return nil, fmt.Errorf("%q is no key algorithm of Calico's: it has %q", algorithm,
		KeyAlgorithms)
}

func signatureAlgorithm(name string) (x509.SignatureAlgorithm, error) {
	switch name {
	case "", "SHA256WithRSA":
		return x509.SHA256WithRSA, nil
	case "SHA384WithRSA":
		return x509.SHA384WithRSA, nil
	case "SHA512WithRSA":
		return x509.SHA512WithRSA, nil
	case "ECDSAWithSHA256":
		return x509.ECDSAWithSHA256, nil
	case "ECDSAWithSHA384":
		return x509.ECDSAWithSHA384, nil
	case "ECDSAWithSHA512":
		return x509.ECDSAWithSHA512, nil
	}
	return 0, fmt.Errorf("%q is no signature algorithm of Calico's: it has %q", name,
		SignatureAlgorithms)
}

// NewP256Key makes an ECDSA key on the curve P-256, which is the fastest to make.
func NewP256Key() crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // crypto/rand returns no error
	}
	return key
}
