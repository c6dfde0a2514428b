//go:build cgo

package cryptoki

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// Find returns a few objects that match the template.
func (c *Connection) Find(ctx context.Context,
	template []*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	m := c.module.ctx
	init := func() (struct{}, error) {
		return struct{}{}, m.FindObjectsInit(c.loginSession, template)
	}
	final := func() (struct{}, error) { return struct{}{}, m.FindObjectsFinal(c.loginSession) }
	if _, err := onLoginSession(ctx, c, "C_FindObjectsInit", init, nil); err != nil {
		return nil, err
	}
	handles, err := c.findMore(ctx)
	if c.hung.Load() {
		return nil, err // no other call may be made in this session
	}
	_, ended := onLoginSession(ctx, c, "C_FindObjectsFinal", final, nil)
	return handles, errors.Join(err, ended)
}

// findMore asks until there are no more, or enough: a module may return objects in several calls
// (PKCS#11 v2.40, section 5.7, C_FindObjects).
func (c *Connection) findMore(ctx context.Context) (all []pkcs11.ObjectHandle, err error) {
	const most = 32
	for len(all) < most {
		some, err := onLoginSession(ctx, c, "C_FindObjects", func() ([]pkcs11.ObjectHandle, error) {
			some, _, err := c.module.ctx.FindObjects(c.loginSession, most-len(all))
			return some, err
		}, nil)
		if err != nil || len(some) == 0 {
			return all, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// Attribute reads one attribute: some modules reject a whole query for one attribute that they do
// not know.
func (c *Connection) Attribute(ctx context.Context, object pkcs11.ObjectHandle,
	kind uint) ([]byte, error) {
	if c.hung.Load() {
		return nil, &AbandonedError{Call: "an earlier call in the login session",
			Timeout: c.user.config.Timeout}
	}
	values, err := onLoginSession(ctx, c, "C_GetAttributeValue",
		func() ([]*pkcs11.Attribute, error) {
			return c.module.ctx.GetAttributeValue(c.loginSession, object,
				[]*pkcs11.Attribute{pkcs11.NewAttribute(kind, nil)})
		}, nil)
	if err != nil {
		return nil, err
	}
	if len(values) != 1 {
		return nil, fmt.Errorf("the module returned %d values for one attribute", len(values))
	}
	return values[0].Value, nil
}
