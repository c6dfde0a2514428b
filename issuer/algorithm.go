package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
)

// What a CA's key may sign with, by its kind.
var (
	rsaAlgorithms = []x509.SignatureAlgorithm{
		x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
	}
	ecdsaAlgorithms = []x509.SignatureAlgorithm{x509.ECDSAWithSHA256, x509.ECDSAWithSHA384,
		x509.ECDSAWithSHA512}
	ed25519Algorithms = []x509.SignatureAlgorithm{x509.PureEd25519}
)

// AlgorithmName is the name of a signature algorithm as users write it, the way Calico spells them:
// SHA256WithRSA, SHA256WithRSAPSS, ECDSAWithSHA256, Ed25519.
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
	for _, a := range slices.Concat(rsaAlgorithms, ecdsaAlgorithms, ed25519Algorithms) {
		names = append(names, AlgorithmName(a))
	}
	return names
}

// ParseAlgorithm reads the name of a signature algorithm.
func ParseAlgorithm(name string) (x509.SignatureAlgorithm, error) {
	for _, a := range slices.Concat(rsaAlgorithms, ecdsaAlgorithms, ed25519Algorithms) {
		if AlgorithmName(a) == name {
			return a, nil
		}
	}
	return 0, fmt.Errorf("%q is not a signature algorithm; choose from %s", name,
		strings.Join(AlgorithmNames(), ", "))
}

// DefaultAlgorithm is what a key signs with where nothing else is said: SHA-384 with P-384, SHA-512
// with P-521, nothing but itself with Ed25519, else SHA-256.
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
	case ed25519.PublicKey:
		return x509.PureEd25519
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
	case x509.PureEd25519:
		return crypto.Hash(0) // the message itself
	}
	switch a {
	case x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	return hash
}

// fits returns nil if a key of this kind can sign with the algorithm.
func fits(a x509.SignatureAlgorithm, public crypto.PublicKey) error {
	var allowed []x509.SignatureAlgorithm
	switch public.(type) {
	case *rsa.PublicKey:
		allowed = rsaAlgorithms
	case *ecdsa.PublicKey:
		allowed = ecdsaAlgorithms
	case ed25519.PublicKey:
		allowed = ed25519Algorithms
	}
	if slices.Contains(allowed, a) {
		return nil
	}
	names := make([]string, 0, len(allowed))
	for _, one := range allowed {
		names = append(names, AlgorithmName(one))
	}
	return fmt.Errorf("the CA's key (%T) cannot sign with %s; choose from %s", public,
		AlgorithmName(a), strings.Join(names, ", "))
}
