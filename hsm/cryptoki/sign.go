//go:build cgo

package cryptoki

import (
	"context"
	"errors"

	"github.com/miekg/pkcs11"
)

// Sign makes one signature with a private key in a session of its own, and returns it in the form
// of the mechanism. It waits for a session, and then for the signature, each as long as the timeout
// of the configuration at most. After an error the session is closed, since its operation may still
// be active.
func (c *Connection) Sign(ctx context.Context, key pkcs11.ObjectHandle, mech []*pkcs11.Mechanism,
	input []byte) ([]byte, error) {
	waiting, cancel := context.WithTimeout(ctx, c.module.config.Timeout)
	defer cancel()
	session, err := c.sessions.acquire(waiting)
	if err != nil {
		return nil, err
	}
	signature, err := c.signOn(ctx, session, key, mech, input)
	hung := (*AbandonedError)(nil)
	switch {
	case err == nil:
		c.sessions.release(session)
		return signature, nil
	case errors.As(err, &hung):
		c.hung.Store(c.hung.Load() || session == c.loginSession)
		c.sessions.forget(session)
	default:
		c.sessions.discard(session)
	}
	if session == c.loginSession {
		err = &LoginSessionError{err}
	}
	return nil, err
}

// signOn makes both calls as one, so that a session is closed once if its answer is late.
func (c *Connection) signOn(ctx context.Context, session pkcs11.SessionHandle,
	key pkcs11.ObjectHandle, mech []*pkcs11.Mechanism, input []byte) ([]byte, error) {
	m := c.module.ctx
	closeLate := func([]byte, error) { _ = m.CloseSession(session) }
	return call(ctx, c.module, c.module.config.Timeout, "C_Sign", func() ([]byte, error) {
		if err := m.SignInit(session, mech, key); err != nil {
			return nil, err
		}
		return m.Sign(session, input)
	}, closeLate)
}
