//go:build cgo

package cryptoki

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/ckr"
)

// A Connection is one login to a token, on a module that may outlive it, or be replaced for another
// user. It is never repaired:
// after a fault it is closed and another one is made. [Connection.Sign] and [Connection.Sessions]
// are safe for concurrent use. Everything else works in the login session, where only one call may
// be made at a time.
type Connection struct {
	caller
	slot         uint
	token        pkcs11.TokenInfo
	loginSession pkcs11.SessionHandle // stays open and idle, which keeps the login
	sessions     *pool

	// an application was already logged in, so the token did not check the PIN
	alreadyIn bool
	hung      atomic.Bool // a call hangs in the login session; the call closes it when it returns
	lost      atomic.Bool // the module has lost the sessions
}

// NewConnection returns a connection to the token of the user, whose module is loaded. The caller
// finds the token, checks the state of the PIN and logs in, in this order, and closes it.
func (u *User) NewConnection() *Connection { return &Connection{caller: caller{u, u.on}} }

// Connect finds the token and logs in. It looks for no key.
func (u *User) Connect(ctx context.Context) (*Connection, error) {
	c := u.NewConnection()
	for _, step := range []func(context.Context) error{c.FindToken, c.PINState, c.Login} {
		if err := step(ctx); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// onLoginSession makes a call in the login session. A call that returns late closes the session:
// nothing else may while a call is in flight in it.
func onLoginSession[T any](ctx context.Context, c *Connection, name string, f func() (T, error),
	late func(error)) (T, error) {
	if c.lost.Load() {
		var none T
		return none, errLost
	}
	value, err := call(ctx, c.caller, c.user.config.Timeout, name, f, func(_ T, err error) {
		if late != nil {
			late(err)
		}
		c.closeLate(c.loginSession)
	})
	if abandoned := (*AbandonedError)(nil); errors.As(err, &abandoned) {
		c.hung.Store(true)
	}
	return value, err
}

// errLost is what every call in a session returns when the module has lost the sessions.
var errLost = pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID)

// closeLate closes a session after a call in it has returned late.
func (c *Connection) closeLate(session pkcs11.SessionHandle) {
	if c.module.disown(session, c) {
		_ = c.module.ctx.CloseSession(session)
	}
}

// Login opens the login session and logs in. It tries the PIN once.
func (c *Connection) Login(ctx context.Context) error {
	config := c.user.config
	var err error
	if c.loginSession, err = c.openSession(ctx); err != nil {
		return Unavailable(err, "open a session with the %s", config.Token)
	}
	c.sessions = c.newSessions(config.MaxSessions)
	return c.login(ctx)
}

// newSessions returns the pool of at most so many sessions; 0: as many as signatures need.
func (c *Connection) newSessions(wanted int) *pool {
	first := sessionLimit(cmp.Or(wanted, firstSessions), c.token.MaxSessionCount)
	if wanted > 0 {
		return newPool(c, first, first)
	}
	return newPool(c, first, growthLimit(first, c.token.MaxSessionCount, c.token.SessionCount))
}

func (c *Connection) openSession(ctx context.Context) (pkcs11.SessionHandle, error) {
	m := c.module.ctx
	session, err := call(ctx, c.caller, c.user.config.Timeout, "C_OpenSession",
		func() (pkcs11.SessionHandle, error) {
			return m.OpenSession(c.slot, pkcs11.CKF_SERIAL_SESSION)
		}, func(session pkcs11.SessionHandle, err error) {
			if err == nil {
				_ = m.CloseSession(session)
			}
		})
	if err == nil {
		c.module.own(session, c)
	}
	return session, err
}

// closeSession closes a session unless another connection has it now.
func (c *Connection) closeSession(session pkcs11.SessionHandle) error {
	if !c.module.disown(session, c) {
		return nil
	}
	return c.do(context.Background(), closeTimeout, "C_CloseSession",
		func() error { return c.module.ctx.CloseSession(session) })
}

// login tries the PIN once, unless it was tried without success for another key.
func (c *Connection) login(ctx context.Context) error {
	config := c.user.config
	pin, err := config.PIN()
	if err != nil {
		return Faultf(ErrUnavailable, "the PIN of the %s cannot be read: %v", config.Token, err)
	}
	l := c.user.shared.loginsOf(c.loginKey())
	c.user.logins.Store(l)
	l.turn.Lock()
	defer l.turn.Unlock()
	if err := l.allow(pin); err != nil {
		return err
	}
	_, err = onLoginSession(ctx, c, callLogin, func() (struct{}, error) {
		l.begin(pin, c.module)
		c.user.counts.Logins.Add(1)
		err := c.module.ctx.Login(c.loginSession, pkcs11.CKU_USER, string(pin))
		l.end(pin, config.Token, err)
		return struct{}{}, err
	}, func(err error) {
		if ckr.IsPIN(err) || ckr.MayBePIN(err) { // it is late, but counts
			c.user.counts.FailedLate.Store(LoginFault(pin, config.Token, err))
		}
	})
	switch {
	case ckr.Is(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN):
		c.alreadyIn = true
		return nil
	case err == nil:
		return nil
	}
	return LoginFault(pin, config.Token, err)
}

// Close closes the connection's sessions, one by one; the login ends with the last of them. It
// calls neither C_CloseAllSessions nor C_Logout: late, they would hit the next connection's. A call
// that hangs ends it, and the other sessions are closed later.
func (c *Connection) Close() {
	if c.loginSession == 0 {
		return
	}
	idle := slices.DeleteFunc(c.sessions.drain(),
		func(session pkcs11.SessionHandle) bool { return session == c.loginSession })
	if !c.hung.Load() {
		idle = append(idle, c.loginSession)
	}
	if c.user.on != c.module || c.lost.Load() {
		return // the sessions have ended already
	}
	for _, session := range idle {
		if c.module.disown(session, c) {
			c.user.stale = append(c.user.stale, session)
		}
	}
	c.CloseStale()
}

// CloseStale closes the sessions that earlier connections left open, until a call hangs.
func (c *Connection) CloseStale() {
	hung := (*AbandonedError)(nil)
	for len(c.user.stale) > 0 {
		session := c.user.stale[0]
		c.user.stale = c.user.stale[1:]
		if err := c.closeSession(session); errors.As(err, &hung) || errors.Is(err, ErrHung) {
			return
		}
	}
}

// AlreadyLoggedIn reports whether another application was logged in, so that the token did not
// check the PIN.
func (c *Connection) AlreadyLoggedIn() bool { return c.alreadyIn }

// Hung reports whether a call hangs in the login session.
func (c *Connection) Hung() bool { return c.hung.Load() }

// Slot returns the slot of the token.
func (c *Connection) Slot() uint { return c.slot }

// Sessions returns the counts of the sessions. It does not wait for calls into the module.
func (c *Connection) Sessions() Sessions { return c.sessions.counts() }
