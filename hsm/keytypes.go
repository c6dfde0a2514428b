package hsm

import "crypto/elliptic"

// A keyKind is a kind of key that a ceremony creates.
type keyKind struct {
	name  string
	curve elliptic.Curve // ECDSA
	bits  int            // RSA; neither: Ed25519
}

var keyKinds = []keyKind{
	{name: "ecdsa-p256", curve: elliptic.P256()},
	{name: "ecdsa-p384", curve: elliptic.P384()},
	{name: "ecdsa-p521", curve: elliptic.P521()},
	{name: "rsa-2048", bits: 2048},
	{name: "rsa-3072", bits: 3072},
	{name: "rsa-4096", bits: 4096},
	{name: "rsa-8192", bits: 8192},
	{name: "ed25519"},
}

// KeyTypes returns the types of key that [Ceremony.Generate] creates.
func KeyTypes() []string {
	names := make([]string, 0, len(keyKinds))
	for _, kind := range keyKinds {
		names = append(names, kind.name)
	}
	return names
}
