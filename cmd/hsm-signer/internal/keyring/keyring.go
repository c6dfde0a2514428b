// Package keyring holds the keys of the CAs of a process that signs, and watches them in their
// tokens.
//
// Duty: a CA has one key, and during a rotation a second one that does not sign now. A [Watch]
// checks the one that signs, and an [OtherWatch] the other one, so that a token is found again and
// a fault is known even if nobody requests a certificate.
//
// Contract: what a watch returns is what its last check found, so to ask it costs nothing. Only a
// fault of the key that signs can end the process.
package keyring

import (
	"context"
	"crypto/sha256"

	"hsm-signer/hsm"
	"hsm-signer/issuer"
)

// An Issuer knows whose key signs now.
type Issuer interface {
	CA() *issuer.CA
}

// A Keyring holds the keys of the CAs: of CA_CERT_FILE, and during a rotation of NEXT_CA_CERT_FILE.
type Keyring struct {
	issuer Issuer
	keys   []*hsm.Key
	byCA   map[[sha256.Size]byte]*hsm.Key // by the hash of the CA's key
}

// New returns a keyring without keys.
func New(is Issuer) *Keyring {
	return &Keyring{issuer: is, byCA: map[[sha256.Size]byte]*hsm.Key{}}
}

// Add adds the key of a CA. It must not be called once the keyring is in use.
func (k *Keyring) Add(ca *issuer.CA, key *hsm.Key) {
	k.keys, k.byCA[ca.KeySHA256()] = append(k.keys, key), key
}

// Healthy returns nil if the key that signs now can sign.
func (k *Keyring) Healthy(ctx context.Context) error {
	return k.byCA[k.issuer.CA().KeySHA256()].Healthy(ctx)
}

// other returns the key of a rotation that does not sign now; nil: there is none.
func (k *Keyring) other() *hsm.Key {
	signs := k.issuer.CA().KeySHA256()
	for hash, key := range k.byCA {
		if hash != signs {
			return key
		}
	}
	return nil
}

// Stats returns the counts of all keys. The sessions are those of all, too.
func (k *Keyring) Stats() (sum hsm.Stats) {
	for _, key := range k.keys {
		s := key.Stats()
		sum.Signatures += s.Signatures
		sum.Logins += s.Logins
		sum.Connections += s.Connections
		sum.Initialised += s.Initialised
		sum.Abandoned += s.Abandoned
		sum.Hanging += s.Hanging
		sum.Sessions.Open += s.Sessions.Open
		sum.Sessions.InUse += s.Sessions.InUse
		sum.Sessions.Most += s.Sessions.Most
	}
	return sum
}

// Close closes all keys permanently.
func (k *Keyring) Close() {
	for _, key := range k.keys {
		key.Close()
	}
}
