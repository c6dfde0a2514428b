package hsm

import (
	"context"
	"crypto"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// An OtherKey is another private key in the token of a [Key], such as one that is not the CA's. It signs rarely,
// on the login that is there.
type OtherKey struct {
	key    *Key
	id     KeyID
	public crypto.PublicKey
	mech   mechanism
}

// Other returns another key of the same token, whose public half is public. It does not touch the token yet.
func (k *Key) Other(id KeyID, public crypto.PublicKey) (*OtherKey, error) {
	mech, err := mechanismFor(public)
	if err != nil {
		return nil, err
	}
	return &OtherKey{key: k, id: id, public: public, mech: mech}, nil
}

// Sign signs a digest once, and lets only a signature out that verifies. The key is looked up each time. A fault is left to the
// next try: it is the other key that connects again.
func (o *OtherKey) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) (signature []byte, err error) {
	err = o.with(ctx, func(conn *connection, handle pkcs11.ObjectHandle) (err error) {
		signature, err = o.signWith(ctx, conn, handle, digest, opts)
		return err
	})
	return signature, err
}

// Proof returns what the token says of the key's attributes; it connects if need be.
func (o *OtherKey) Proof(ctx context.Context) (proof Proof, err error) {
	err = o.with(ctx, func(conn *connection, handle pkcs11.ObjectHandle) (err error) {
		proof, err = conn.prove(ctx, handle)
		return err
	})
	return proof, err
}

// with finds the key on the connection of the CA's key, and calls do.
func (o *OtherKey) with(ctx context.Context, do func(*connection, pkcs11.ObjectHandle) error) error {
	if err := o.key.Look(ctx); err != nil && !errors.Is(err, ErrUnproven) {
		return err
	}
	conn, err := o.key.connected(ctx)
	if err != nil {
		return err
	}
	return o.key.on(ctx, conn, func() error {
		handle, err := conn.findOne(ctx, o.id)
		if err != nil {
			return err
		}
		return do(conn, handle)
	})
}

func (o *OtherKey) signWith(ctx context.Context, conn *connection, handle pkcs11.ObjectHandle, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := conn.sign(ctx, o.mech, handle, digest, opts)
	switch {
	case err != nil:
		return nil, unavailable(err, "sign with the private %s", o.id)
	case !verifies(o.public, opts, digest, signature):
		return nil, faultf(ErrKey, "the private %s is not the key of the public one: its signature does not verify with it", o.id)
	}
	return signature, nil
}

// check says how the key stands: whether it is there, could leave, and is that of the public one.
func (o *OtherKey) check(ctx context.Context, conn *connection) (detail string, warning bool, err error) {
	handle, err := conn.findOne(ctx, o.id)
	if err != nil {
		return "", false, err
	}
	proof, err := conn.prove(ctx, handle)
	if err != nil {
		return "", false, err
	}
	opts := Config{}.withDefaults(o.public).Signature
	_, err = o.signWith(ctx, conn, handle, probe(opts), opts)
	return fmt.Sprintf("a test signature of the private %s verifies with the public one: %s", o.id, proof), proof.Doubtful(), err
}
