package hsm

import (
	"context"
	"crypto"
	"errors"

	"github.com/miekg/pkcs11"
)

// An OtherKey is another private key in the token of a [Key], such as one that is not the CA's. It signs now and then,
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

// Sign signs a digest once, and lets only a signature out that verifies. The key is found anew each time. A fault is left to the
// next try: it is the other key that connects again.
func (o *OtherKey) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := o.key.Look(ctx); err != nil && !errors.Is(err, ErrUnproven) {
		return nil, err
	}
	conn, err := o.key.connected(ctx)
	if err != nil {
		return nil, err
	}
	var signature []byte
	err = o.key.on(ctx, conn, func() (err error) {
		var handle pkcs11.ObjectHandle
		if handle, err = conn.findOne(ctx, o.id); err != nil {
			return err
		}
		if signature, err = conn.sign(ctx, o.mech, handle, digest, opts); err != nil {
			return unavailable(err, "sign with the private %s", o.id)
		}
		if !verifies(o.public, opts, digest, signature) {
			return faultf(ErrKey, "the private %s is not the key of the public one: its signature does not verify with it", o.id)
		}
		return nil
	})
	return signature, err
}
