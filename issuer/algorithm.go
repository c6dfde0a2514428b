package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
)

// rsaAlgorithms and ecdsaAlgorithms are what a CA's key may sign with.
var (
	rsaAlgorithms = []x509.SignatureAlgorithm{
		x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
	}
	ecdsaAlgorithms = []x509.SignatureAlgorithm{x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512}
)

// AlgorithmName is the name of a signature algorithm as users write it, the way
// Calico spells them: SHA256WithRSA, SHA256WithRSAPSS, ECDSAWithSHA256.
func AlgorithmName(a x509.SignatureAlgorithm) string {
	hash, pss := strings.CutSuffix(a.String(), "-RSAPSS")
	if pss {
		return hash + "WithRSAPSS"
	}
	if hash, ok := strings.CutSuffix(a.String(), "-RSA"); ok {
		return hash + "WithRSA"
	}
	return strings.Replace(a.String(), "ECDSA-", "ECDSAWith", 1)
}

// AlgorithmNames lists what [ParseAlgorithm] knows.
func AlgorithmNames() []string {
	var names []string
	for _, a := range slices.Concat(rsaAlgorithms, ecdsaAlgorithms) {
		names = append(names, AlgorithmName(a))
	}
	return names
}

// ParseAlgorithm reads the name of a signature algorithm.
func ParseAlgorithm(name string) (x509.SignatureAlgorithm, error) {
	for _, a := range slices.Concat(rsaAlgorithms, ecdsaAlgorithms) {
		if AlgorithmName(a) == name {
			return a, nil
		}
	}
	return 0, fmt.Errorf("%q is not a signature algorithm; choose from %s", name, strings.Join(AlgorithmNames(), ", "))
}

// DefaultAlgorithm is what a key signs with where nothing else is said: SHA-384
// with P-384, SHA-512 with P-521, else SHA-256.
func DefaultAlgorithm(public crypto.PublicKey) x509.SignatureAlgorithm {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return x509.SHA256WithRSA
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P384():
			return x509.ECDSAWithSHA384
		case elliptic.P521():
			return x509.ECDSAWithSHA512
		}
		return x509.ECDSAWithSHA256
	}
	return x509.UnknownSignatureAlgorithm
}

// SignerOpts is what a [crypto.Signer] is told so that it signs with the algorithm;
// [x509.UnknownSignatureAlgorithm] means the default one of the key.
func SignerOpts(a x509.SignatureAlgorithm, public crypto.PublicKey) crypto.SignerOpts {
	if a == x509.UnknownSignatureAlgorithm {
		a = DefaultAlgorithm(public)
	}
	hash := crypto.SHA256
	switch a {
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		hash = crypto.SHA512
	}
	switch a {
	case x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	return hash
}

// fits answers nil when a key of this kind can sign with the algorithm.
func fits(a x509.SignatureAlgorithm, public crypto.PublicKey) error {
	var allowed []x509.SignatureAlgorithm
	switch public.(type) {
	case *rsa.PublicKey:
		allowed = rsaAlgorithms
	case *ecdsa.PublicKey:
		allowed = ecdsaAlgorithms
	}
	if slices.Contains(allowed, a) {
		return nil
	}
	names := make([]string, 0, len(allowed))
	for _, one := range allowed {
		names = append(names, AlgorithmName(one))
	}
	return fmt.Errorf("the CA's key (%T) cannot sign with %s; choose from %s", public, AlgorithmName(a), strings.Join(names, ", "))
}
