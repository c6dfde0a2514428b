// Package fingerprint names certificates and keys by their SHA-256, as sha256sum prints it.
package fingerprint

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
)

// Of is the SHA-256 of DER, in the form of sha256sum.
func Of(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// OfKey is that of a public key's SubjectPublicKeyInfo.
func OfKey(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	return Of(der), err
}
