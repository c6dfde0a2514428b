package rotation

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"hsm-signer/issuer"
)

// A RootSet names root certificates: the SHA-256 of each in hex, with commas in between. The zero
// RootSet names none.
type RootSet string

// NewRootSet names the roots.
func NewRootSet(roots issuer.Anchors) RootSet {
	var names []string
	for _, root := range roots {
		names = append(names, nameOf(root))
	}
	return RootSet(strings.Join(names, ","))
}

func nameOf(root *x509.Certificate) string {
	sum := sha256.Sum256(root.Raw)
	return hex.EncodeToString(sum[:])
}

// names returns the hashes; of the zero RootSet, none.
func (r RootSet) names() []string {
	if r == "" {
		return nil
	}
	return strings.Split(string(r), ",")
}

// of returns those of the roots that the set names.
func (r RootSet) of(roots issuer.Anchors) issuer.Anchors {
	names := r.names()
	return slices.DeleteFunc(slices.Clone(roots), func(root *x509.Certificate) bool {
		return !slices.Contains(names, nameOf(root))
	})
}

// check returns an error if a name is not a SHA-256 in hex.
func (r RootSet) check() error {
	for _, name := range r.names() {
		if err := new(Key).UnmarshalText([]byte(name)); err != nil {
			return fmt.Errorf("a root: %w", err)
		}
	}
	return nil
}

// Roots are those that a process publishes for the CAs of CA_CERT_FILE and NEXT_CA_CERT_FILE; nil:
// none.
type Roots struct{ CA, Next issuer.Anchors }

// Of returns the roots of the CA with the key, in a process with these keys.
func (r Roots) Of(key Key, k Keys) issuer.Anchors {
	if key == k.Next {
		return r.Next
	}
	return r.CA
}

// CheckRoots returns an error if clients may not trust yet what the CA issues to which the rotation
// leads: among its roots that were published when [Trusted] began, and still are, none trusts it.
// It returns nil before that phase, and if no roots were or are published.
func (s State) CheckRoots(k Keys, r Roots, to *issuer.CA) error {
	published := r.Of(s.To, k)
	if s.Trusted.IsZero() || !s.Ongoing(k) || s.Roots == "" && published == nil ||
		s.Roots.of(published).Trust(to) == nil {
		return nil
	}
	return s.explainRoots(k, published, to)
}

// explainRoots says why clients may not trust the CA yet, and what to do.
func (s State) explainRoots(k Keys, published issuer.Anchors, to *issuer.CA) error {
	began, file := s.Trusted.UTC().Format(time.RFC3339), "NEXT_TRUST_BUNDLE_FILE"
	if s.To == k.CA {
		file = "TRUST_BUNDLE_FILE"
	}
	if s.Roots == "" {
		return fmt.Errorf("no root was published when the phase trusted began, at %s, so clients "+
			"may lack those of %s: unset NEXT_TRUST_BUNDLE_FILE and TRUST_BUNDLE_FILE, and start "+
			"hsm-signer again; set them after the rotation", began, file)
	}
	if gone := len(s.Roots.names()) - len(s.Roots.of(published)); gone > 0 {
		return fmt.Errorf("%d of the roots that were published when the phase trusted began, at "+
			"%s, are no longer published: put them back into %s, and start hsm-signer again", gone,
			began, file)
	}
	return fmt.Errorf("no root that was published when the phase trusted began, at %s, trusts the "+
		"CA's certificate (%s): put the former certificate back into its file; to use this one, "+
		"keep its root published, go back to announced, and take the steps again",
		began, to.Certificate().Subject)
}

// MaySign returns an error if a process with these keys and roots must not sign: it lacks a CA that
// the phase needs, or clients may not trust yet what it would issue. CAOf returns the CA with a key
// that the process has.
func (s State) MaySign(k Keys, r Roots, caOf func([sha256.Size]byte) *issuer.CA) error {
	if err := s.Fits(k); err != nil || s.Signer(k) != s.To {
		return err
	}
	return s.CheckRoots(k, r, caOf(s.To))
}
