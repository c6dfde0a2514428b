//go:build cgo

package cryptoki

import (
	"context"
	"errors"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/csign"
)

// Sign makes one signature in a session of its own, and returns it in the form of the mechanism. It
// waits for a session, and then for the signature, each as long as the timeout of the configuration
// at most. After an error the session is closed, since its operation may still be active.
func (c *Connection) Sign(ctx context.Context, request csign.Request) ([]byte, error) {
	session, err := c.sessions.acquire(ctx, c.user.config.Timeout)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	signature, err := c.signOn(ctx, session, request)
	if err != nil {
		return nil, c.failed(session, err)
	}
	c.sessions.release(session, time.Since(start))
	return signature, nil
}

// failed takes a session in which a call failed out of the pool.
func (c *Connection) failed(session pkcs11.SessionHandle, err error) error {
	if hung := (*AbandonedError)(nil); errors.As(err, &hung) {
		c.hung.Store(c.hung.Load() || session == c.loginSession)
		c.sessions.forget(session)
	} else {
		c.sessions.discard(session)
	}
	if session == c.loginSession {
		return &LoginSessionError{err}
	}
	return err
}

// signOn makes both calls as one, so that a session is closed once if its answer is late.
func (c *Connection) signOn(ctx context.Context, session pkcs11.SessionHandle,
	request csign.Request) ([]byte, error) {
	if c.lost.Load() {
		return nil, errLost
	}
	return call(ctx, c.caller, c.user.config.Timeout, "C_Sign",
		func() ([]byte, error) { return c.module.signing.Sign(session, request) },
		func([]byte, error) { c.closeLate(session) })
}
