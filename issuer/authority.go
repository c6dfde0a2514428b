package issuer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"hsm-signer/issuer/journal"
)

// A Key signs for the CA.
type Key interface {
	Public() crypto.PublicKey
	// Ready returns nil if the key can sign now.
	Ready(ctx context.Context) error
	// Signer returns a signer whose signatures end with the context.
	Signer(ctx context.Context) crypto.Signer
}

// An Authority is a CA with the key that signs for it. What is in it does not change: another
// certificate of the CA makes another Authority.
type Authority struct {
	CA  *CA
	Key Key // its public half is the one in the CA's certificate
	// Algorithm is one that the key can sign with; [x509.UnknownSignatureAlgorithm] means the
	// default one of the key.
	Algorithm x509.SignatureAlgorithm
}

// complete returns the authority with its algorithm, or an error if the parts do not fit.
func (a Authority) complete() (*Authority, error) {
	if err := a.CA.Matches(a.Key.Public()); err != nil {
		return nil, err
	}
	if a.Algorithm == x509.UnknownSignatureAlgorithm {
		a.Algorithm = DefaultAlgorithm(a.Key.Public())
	}
	if err := fits(a.Algorithm, a.Key.Public()); err != nil {
		return nil, err
	}
	return &a, nil
}

// authorities are those that an issuer can sign with, one for each key. One of them is in force. It
// is safe for concurrent use.
type authorities struct {
	inForce atomic.Pointer[Authority]

	mu    sync.Mutex // the order of changes
	byKey map[[sha256.Size]byte]*Authority
}

// ErrUnknownKey says that no registered CA has the key.
var ErrUnknownKey = errors.New("no certificate of the CA with this key is configured")

// Next registers a second CA, which signs nothing before [Issuer.SignWith]. It must have
// another key than the first, and another name or subjectKeyIdentifier: by these, clients choose
// the certificate that they verify with.
func (i *Issuer) Next(a Authority) error {
	next, err := a.complete()
	if err != nil {
		return err
	}
	i.authorities.mu.Lock()
	defer i.authorities.mu.Unlock()
	for _, other := range i.authorities.byKey {
		if err := next.CA.distinctFrom(other.CA); err != nil {
			return err
		}
	}
	i.authorities.byKey[next.CA.KeySHA256()] = next
	return nil
}

// distinctFrom returns an error if clients could take one CA for the other.
func (c *CA) distinctFrom(other *CA) error {
	switch {
	case c.KeySHA256() == other.KeySHA256():
		return fmt.Errorf("the CA %s has the same key as %s: another certificate of the same CA "+
			"goes into the same file; a rotation needs another key", c.cert.Subject,
			other.cert.Subject)
	case bytes.Equal(c.cert.RawSubject, other.cert.RawSubject) &&
		bytes.Equal(c.cert.SubjectKeyId, other.cert.SubjectKeyId):
		return fmt.Errorf("the CA %s has the name and the subjectKeyIdentifier of the other CA: "+
			"clients could not tell them apart", c.cert.Subject)
	}
	return nil
}

// SignWith has certificates issued under the CA whose key has this SHA-256; see [CA.KeySHA256].
// What another CA was to sign is stale from now on ([policy.ErrGrantStale]); what it is signing is
// still issued under it. It returns an error that wraps [ErrUnknownKey] if no CA has the key.
func (i *Issuer) SignWith(key [sha256.Size]byte) error {
	i.authorities.mu.Lock()
	defer i.authorities.mu.Unlock()
	a := i.authorities.byKey[key]
	if a == nil {
		return fmt.Errorf("%w: %x", ErrUnknownKey, key)
	}
	i.authorities.inForce.Store(a)
	return nil
}

// CA is the one that certificates are issued under now.
func (i *Issuer) CA() *CA { return i.authorities.inForce.Load().CA }

// CAOf returns the CA whose key has this SHA-256, whether or not it signs now; nil if there is
// none.
func (i *Issuer) CAOf(key [sha256.Size]byte) *CA {
	i.authorities.mu.Lock()
	defer i.authorities.mu.Unlock()
	if a := i.authorities.byKey[key]; a != nil {
		return a.CA
	}
	return nil
}

// Replace has certificates issued under another certificate of the same CA, of the same key and
// name, such as one that is valid for longer, or has another chain.
func (i *Issuer) Replace(ca *CA) error {
	i.authorities.mu.Lock()
	defer i.authorities.mu.Unlock()
	before := i.authorities.byKey[ca.KeySHA256()]
	if before == nil {
		return ca.Matches(i.authorities.inForce.Load().Key.Public())
	}
	if err := before.CA.replaceableBy(ca); err != nil {
		return err
	}
	after := &Authority{CA: ca, Key: before.Key, Algorithm: before.Algorithm}
	i.authorities.byKey[ca.KeySHA256()] = after
	i.authorities.inForce.CompareAndSwap(before, after)
	return nil
}

// of returns the authority of the CA that a to-be-signed certificate names; nil if it is of none.
func (a *authorities) of(tbs []byte) *Authority {
	cert, err := journal.ParseTBS(tbs)
	if err != nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, one := range a.byKey {
		if bytes.Equal(cert.RawIssuer, one.CA.cert.RawSubject) &&
			bytes.Equal(cert.AuthorityKeyId, one.CA.cert.SubjectKeyId) {
			return one
		}
	}
	return nil
}

// has reports whether the authority was not replaced, and, to sign, whether it is in force.
func (a *authorities) has(one *Authority, toSign bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.byKey[one.CA.KeySHA256()] == one && (!toSign || a.inForce.Load() == one)
}

// signed reports whether one of the CAs has signed the certificate.
func (a *authorities) signed(cert *x509.Certificate) bool {
	a.mu.Lock()
	all := slices.Collect(maps.Values(a.byKey))
	a.mu.Unlock()
	return slices.ContainsFunc(all, func(one *Authority) bool {
		return bytes.Equal(cert.RawIssuer, one.CA.cert.RawSubject) &&
			cert.CheckSignatureFrom(one.CA.cert) == nil
	})
}
