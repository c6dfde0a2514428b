package hsm

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/ckr"
)

// A connection is one login to the token and one key handle, on a module that may outlive it. It is
// never repaired: after a fault it is closed and another one is made.
type connection struct {
	module       *module
	timeout      time.Duration // longest wait for one call
	slot         uint
	token        pkcs11.TokenInfo
	loginSession pkcs11.SessionHandle // stays open and idle, which keeps the login
	key          pkcs11.ObjectHandle
	sessions     *pool

	// an application was already logged in, so the token did not check the PIN
	alreadyIn bool
	hung      atomic.Bool // a call hangs in the login session; the call closes it when it returns

	started time.Time   // when it was made
	served  atomic.Bool // it has signed for a caller
}

// onLoginSession makes a call in the login session. A call that returns late closes the session:
// nothing else may while a call is in flight in it.
func onLoginSession[T any](ctx context.Context, c *connection, name string, f func() (T, error),
	late func(error)) (T, error) {
	value, err := call(ctx, c.module, c.timeout, name, f, func(_ T, err error) {
		if late != nil {
			late(err)
		}
		_ = c.module.ctx.CloseSession(c.loginSession)
	})
	if abandoned := (*abandonedError)(nil); errors.As(err, &abandoned) {
		c.hung.Store(true)
	}
	return value, err
}

// connect finds the token and logs in. It does not look for the key.
func connect(ctx context.Context, l *module, c Config) (*connection, error) {
	conn := &connection{module: l, timeout: c.Timeout, started: time.Now()}
	if err := conn.open(ctx, c); err != nil {
		conn.close()
		return nil, err
	}
	return conn, nil
}

func (c *connection) open(ctx context.Context, config Config) error {
	if err := c.findToken(ctx, config); err != nil {
		return err
	}
	if err := c.pinState(config); err != nil {
		return err
	}
	return c.start(ctx, config)
}

// start opens the login session and logs in.
func (c *connection) start(ctx context.Context, config Config) error {
	var err error
	if c.loginSession, err = c.openSession(ctx); err != nil {
		return unavailable(err, "open a session with the %s", config.Token)
	}
	c.sessions = newPool(c, sessionLimit(config.MaxSessions, c.token.MaxSessionCount))
	return c.login(ctx, config)
}

func (c *connection) openSession(ctx context.Context) (pkcs11.SessionHandle, error) {
	return call(ctx, c.module, c.timeout, "C_OpenSession", func() (pkcs11.SessionHandle, error) {
		return c.module.ctx.OpenSession(c.slot, pkcs11.CKF_SERIAL_SESSION)
	}, func(session pkcs11.SessionHandle, err error) {
		if err == nil {
			_ = c.module.ctx.CloseSession(session)
		}
	})
}

func (c *connection) closeSession(session pkcs11.SessionHandle) error {
	return c.module.do(context.Background(), closeTimeout, "C_CloseSession",
		func() error { return c.module.ctx.CloseSession(session) })
}

// login tries the PIN once.
func (c *connection) login(ctx context.Context, config Config) error {
	pin, err := config.PIN()
	if err != nil {
		return faultf(ErrUnavailable, "the PIN of the %s cannot be read: %v", config.Token, err)
	}
	_, err = onLoginSession(ctx, c, callLogin, func() (struct{}, error) {
		c.module.tries(pin)
		c.module.counts.logins.Add(1)
		return struct{}{}, c.module.ctx.Login(c.loginSession, pkcs11.CKU_USER, string(pin))
	}, func(err error) {
		if ckr.IsPIN(err) || ckr.MayBePIN(err) { // it is late, but counts
			c.module.counts.failedLate.Store(loginFault(pin, config.Token, err))
		}
	})
	switch {
	case ckr.Is(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN):
		c.alreadyIn = true
		return nil
	case err == nil:
		return nil
	}
	return loginFault(pin, config.Token, err)
}

// loginFault returns the error for a failed login: the token rejected the PIN, or did not get to
// check it.
func loginFault(pin PIN, token TokenID, err error) *fault {
	if ckr.IsPIN(err) {
		return &fault{kind: ErrPIN, refused: pin.Fixed(), cause: err, text: fmt.Sprintf(
			"the %s rejected the PIN: %s; correct PKCS11_PIN or PKCS11_PIN_FILE before you "+
				"start hsm-signer again: tokens lock after a few tries", token, ckr.Explain(err))}
	}
	f := &fault{kind: ErrUnavailable, login: true, cause: err,
		text: fmt.Sprintf("log in to the %s: %s", token, ckr.Explain(err))}
	if ckr.MayBePIN(err) {
		f.text += fmt.Sprintf("; some modules return this for a wrong PIN, so the next attempt "+
			"is at least %s away", firstLoginRetry)
	}
	return f
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
	handles, err := c.find(ctx, template)
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
	value, err := c.attribute(ctx, c.key, pkcs11.CKA_ALWAYS_AUTHENTICATE)
	if c.hung.Load() {
		return unavailable(err, "read CKA_ALWAYS_AUTHENTICATE of the key")
	}
	if err == nil && len(value) == 1 && value[0] != 0 {
		return faultf(ErrKey, "the private %s has CKA_ALWAYS_AUTHENTICATE=1: its token asks for "+
			"the PIN before each signature. Create a key without it", want)
	}
	return nil // a token that does not know the attribute does not require it
}

// find returns a few objects that match the template.
func (c *connection) find(ctx context.Context,
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
func (c *connection) findMore(ctx context.Context) (all []pkcs11.ObjectHandle, err error) {
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

// describeKeys lists the private keys in the token.
func (c *connection) describeKeys(ctx context.Context) string {
	handles, err := c.find(ctx,
		[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)})
	if err != nil || len(handles) == 0 {
		return "no private key"
	}
	var all []string
	for _, handle := range handles {
		id := KeyID{}
		if v, err := c.attribute(ctx, handle, pkcs11.CKA_LABEL); err == nil {
			id.Label = string(v)
		}
		if v, err := c.attribute(ctx, handle, pkcs11.CKA_ID); err == nil {
			id.ID = v
		}
		all = append(all, "the "+id.String())
	}
	return strings.Join(all, ", ")
}

// attribute reads one attribute: some modules reject a whole query for one attribute that they do
// not know.
func (c *connection) attribute(ctx context.Context, object pkcs11.ObjectHandle,
	kind uint) ([]byte, error) {
	if c.hung.Load() {
		return nil, &abandonedError{name: "an earlier call in the login session",
			timeout: c.timeout}
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

// sign makes one signature with a key in a session of the pool.
func (c *connection) sign(ctx context.Context, m mechanism, key pkcs11.ObjectHandle, digest []byte,
	opts crypto.SignerOpts) ([]byte, error) {
	mech, input, err := m.prepare(digest, opts)
	if err != nil {
		return nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	session, err := c.sessions.acquire(waiting)
	if err != nil {
		return nil, err
	}
	raw, err := c.signOn(ctx, session, key, mech, input)
	hung := (*abandonedError)(nil)
	switch {
	case err == nil:
		c.sessions.release(session)
		return m.finish(raw)
	case errors.As(err, &hung):
		c.hung.Store(c.hung.Load() || session == c.loginSession)
		c.sessions.forget(session)
	default:
		c.sessions.discard(session)
	}
	if session == c.loginSession {
		err = &loginSessionError{err}
	}
	return nil, err
}

// signOn makes both calls as one, so that a session is closed once if its answer is late.
func (c *connection) signOn(ctx context.Context, session pkcs11.SessionHandle,
	key pkcs11.ObjectHandle, mech []*pkcs11.Mechanism, input []byte) ([]byte, error) {
	m := c.module.ctx
	closeLate := func([]byte, error) { _ = m.CloseSession(session) }
	return call(ctx, c.module, c.timeout, "C_Sign", func() ([]byte, error) {
		if err := m.SignInit(session, mech, key); err != nil {
			return nil, err
		}
		return m.Sign(session, input)
	}, closeLate)
}

// A loginSessionError is a fault in the login session: only another connection has another one.
type loginSessionError struct{ error }

// Unwrap returns the fault.
func (e *loginSessionError) Unwrap() error { return e.error }

// close closes the connection's sessions, one by one; the login ends with the last of them. It
// calls neither C_CloseAllSessions nor C_Logout: late, they would hit the next connection's. A call
// that hangs ends it, and the other sessions are closed later.
func (c *connection) close() {
	if c.loginSession == 0 {
		return
	}
	idle := slices.DeleteFunc(c.sessions.drain(),
		func(session pkcs11.SessionHandle) bool { return session == c.loginSession })
	if !c.hung.Load() {
		idle = append(idle, c.loginSession)
	}
	c.module.stale = append(c.module.stale, idle...)
	c.closeStale()
}

// closeStale closes the sessions that earlier connections left open, until a call hangs.
func (c *connection) closeStale() {
	hung := (*abandonedError)(nil)
	for len(c.module.stale) > 0 {
		session := c.module.stale[0]
		c.module.stale = c.module.stale[1:]
		if err := c.closeSession(session); errors.As(err, &hung) || errors.Is(err, ErrHung) {
			return
		}
	}
}
