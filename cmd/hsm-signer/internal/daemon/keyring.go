package daemon

import (
	"context"
	"crypto/sha256"

	"hsm-signer/hsm"
	"hsm-signer/issuer"
)

// A keyring holds the keys of the CAs: of CA_CERT_FILE, and during a rotation of NEXT_CA_CERT_FILE.
type keyring struct {
	keys  []*hsm.Key
	byKey map[[sha256.Size]byte]*hsm.Key // by the hash of the CA's key
	ca    caHolder                       // whose key signs now
}

func newKeyring() *keyring { return &keyring{byKey: map[[sha256.Size]byte]*hsm.Key{}} }

// add adds the key of a CA.
func (k *keyring) add(ca *issuer.CA, key *hsm.Key) {
	k.keys, k.byKey[ca.KeySHA256()] = append(k.keys, key), key
}

// Healthy returns nil if the key that signs now can sign.
func (k *keyring) Healthy(ctx context.Context) error {
	return k.byKey[k.ca.CA().KeySHA256()].Healthy(ctx)
}

// other returns the key of a rotation that does not sign now; nil: there is none.
func (k *keyring) other() *hsm.Key {
	signs := k.ca.CA().KeySHA256()
	for hash, key := range k.byKey {
		if hash != signs {
			return key
		}
	}
	return nil
}

// Stats returns the counts of all keys. The sessions are those of all, too.
func (k *keyring) Stats() (sum hsm.Stats) {
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
func (k *keyring) Close() {
	for _, key := range k.keys {
		key.Close()
	}
}
