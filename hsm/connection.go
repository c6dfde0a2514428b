//go:build cgo

package hsm

import (
	"context"
	"crypto"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/cryptoki"
)

// A connection is a login to the token with the handle of the key, which names the key on this
// connection only.
type connection struct {
	*cryptoki.Connection
	key pkcs11.ObjectHandle

	started time.Time   // when it was made
	served  atomic.Bool // it has signed for a caller
}

// connect finds the token and logs in. It does not look for the key.
func connect(ctx context.Context, u *cryptoki.User) (*connection, error) {
	started := time.Now()
	login, err := u.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &connection{Connection: login, started: started}, nil
}

// findKey finds the key that the connection signs with.
func (c *connection) findKey(ctx context.Context, want KeyID) (err error) {
	c.key, err = c.findOne(ctx, want)
	return err
}

// findOne returns the private key that matches, and an error unless exactly one does.
func (c *connection) findOne(ctx context.Context, want KeyID) (pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)}
	if want.Label != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, want.Label))
	}
	if len(want.ID) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, want.ID))
	}
	handles, err := c.Find(ctx, template)
	switch {
	case err != nil:
		return 0, unavailable(err, "look for the %s", want)
	case len(handles) == 0:
		return 0, faultf(ErrKey, "the token has no private %s; it holds %s", want,
			c.describeKeys(ctx))
	case len(handles) > 1:
		return 0, faultf(ErrKey, "the token has more than one private %s; it holds %s: "+
			"name one by its label and its id", want, c.describeKeys(ctx))
	}
	return handles[0], nil
}

// requireOneLogin returns an error if the key requires a login before each signature.
func (c *connection) requireOneLogin(ctx context.Context, want KeyID) error {
	value, err := c.Attribute(ctx, c.key, pkcs11.CKA_ALWAYS_AUTHENTICATE)
	if c.Hung() {
		return unavailable(err, "read CKA_ALWAYS_AUTHENTICATE of the key")
	}
	if err == nil && len(value) == 1 && value[0] != 0 {
		return faultf(ErrKey, "the private %s has CKA_ALWAYS_AUTHENTICATE=1: its token asks for "+
			"the PIN before each signature. Create a key without it", want)
	}
	return nil // a token that does not know the attribute does not require it
}

// describeKeys lists the private keys in the token.
func (c *connection) describeKeys(ctx context.Context) string {
	handles, err := c.Find(ctx,
		[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)})
	if err != nil || len(handles) == 0 {
		return "no private key"
	}
	var all []string
	for _, handle := range handles {
		id := KeyID{}
		if v, err := c.Attribute(ctx, handle, pkcs11.CKA_LABEL); err == nil {
			id.Label = string(v)
		}
		if v, err := c.Attribute(ctx, handle, pkcs11.CKA_ID); err == nil {
			id.ID = v
		}
		all = append(all, "the "+id.String())
	}
	return strings.Join(all, ", ")
}

// sign makes one signature with a key, in the form of X.509.
func (c *connection) sign(ctx context.Context, m mechanism, key pkcs11.ObjectHandle, digest []byte,
	opts crypto.SignerOpts) ([]byte, error) {
	request, err := m.prepare(digest, opts)
	if err != nil {
		return nil, err
	}
	request.Key = key
	raw, err := c.Sign(ctx, request)
	if err != nil {
		return nil, err
	}
	return m.finish(raw)
}
