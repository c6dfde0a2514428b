//go:build cgo

package hsm

import (
	"context"
	"crypto"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// A CheckpointKey is a second private key in the token of a [Key]. It signs rarely, and uses the
// connection of the Key.
type CheckpointKey struct {
	key    *Key
	id     KeyID
	public crypto.PublicKey
	mech   mechanism
}

// Checkpoint returns the checkpoint key, whose public half is public. It does not connect to the
// token.
func (k *Key) Checkpoint(id KeyID, public crypto.PublicKey) (*CheckpointKey, error) {
	mech, err := mechanismFor(public)
	if err != nil {
		return nil, err
	}
	return &CheckpointKey{key: k, id: id, public: public, mech: mech}, nil
}

// Sign signs a digest once, and returns only a signature that verifies. It looks the key up each
// time. It does not retry: the Key reconnects.
func (c *CheckpointKey) Sign(ctx context.Context, digest []byte,
	opts crypto.SignerOpts) (signature []byte, err error) {
	err = c.with(ctx, func(conn *connection, handle pkcs11.ObjectHandle) (err error) {
		signature, err = c.signWith(ctx, conn, handle, digest, opts)
		return err
	})
	return signature, err
}

// Attributes reads the key's attributes. It connects if necessary.
func (c *CheckpointKey) Attributes(ctx context.Context) (attributes KeyAttributes, err error) {
	err = c.with(ctx, func(conn *connection, handle pkcs11.ObjectHandle) (err error) {
		attributes, err = conn.attributes(ctx, handle)
		return err
	})
	return attributes, err
}

// with finds the key on the connection of the CA's key, and calls do with it.
func (c *CheckpointKey) with(ctx context.Context,
	do func(*connection, pkcs11.ObjectHandle) error) error {
	if err := c.key.Healthy(ctx); err != nil && !errors.Is(err, ErrUnproven) {
		return err
	}
	conn, err := c.key.connected(ctx)
	if err != nil {
		return err
	}
	return c.key.on(ctx, conn, func() error {
		handle, err := conn.findOne(ctx, c.id)
		if err != nil {
			return err
		}
		return do(conn, handle)
	})
}

func (c *CheckpointKey) signWith(ctx context.Context, conn *connection, handle pkcs11.ObjectHandle,
	digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := conn.sign(ctx, c.mech, handle, digest, opts)
	switch {
	case err != nil:
		return nil, unavailable(err, "sign with the private %s", c.id)
	case !verifies(c.public, opts, digest, signature):
		return nil, faultf(ErrKey, "the private %s does not belong to the public key: its "+
			"signature does not verify with it", c.id)
	}
	return signature, nil
}

// check finds the key, reads its attributes, and makes a test signature that must verify.
func (c *CheckpointKey) check(ctx context.Context, conn *connection) (detail string, warning bool,
	err error) {
	handle, err := conn.findOne(ctx, c.id)
	if err != nil {
		return "", false, err
	}
	attributes, err := conn.attributes(ctx, handle)
	if err != nil {
		return "", false, err
	}
	opts := Config{}.withDefaults(c.public).Signature
	_, err = c.signWith(ctx, conn, handle, probe(opts), opts)
	return fmt.Sprintf("a test signature by the private %s verifies with the public key: %s", c.id,
		attributes), attributes.Doubtful(), err
}
