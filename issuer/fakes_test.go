package issuer

import (
	"context"
	"crypto"
	"errors"
	"io"

	"hsm-signer/issuer/journal"
)

// breakKey has the key of the CA in force fail, until repair is called.
func (i *Issuer) breakKey() (repair func()) {
	a := i.authorities.inForce.Load()
	well := a.Key
	a.Key = brokenKey{well}
	return func() { a.Key = well }
}

var errBroken = errors.New("the key is broken")

// brokenKey is a key that fails to sign.
type brokenKey struct{ Key }

func (k brokenKey) Signer(context.Context) crypto.Signer { return brokenSigner{k.Key.Public()} }

type brokenSigner struct{ public crypto.PublicKey }

func (s brokenSigner) Public() crypto.PublicKey { return s.public }

func (s brokenSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errBroken
}

// closedJournal takes nothing.
type closedJournal struct{ Journal }

func (closedJournal) Ready() error { return journal.ErrClosed }

func (closedJournal) Append(context.Context, journal.Entry) error { return journal.ErrClosed }
