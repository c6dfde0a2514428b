package hsm

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/miekg/pkcs11"
)

// A connection is one initialisation of the module, one login and one key handle.
// It is not repaired: after a fault it is closed and another is made.
type connection struct {
	module   *pkcs11.Ctx
	slot     uint
	token    pkcs11.TokenInfo
	keeper   pkcs11.SessionHandle // stays open and idle, so that the login lasts
	key      pkcs11.ObjectHandle
	sessions *pool
}

// connect opens the module, finds the token and logs in. The key is yet to be found.
func connect(c Config) (*connection, error) {
	module, err := load(c.Module)
	if err != nil {
		return nil, err
	}
	conn := &connection{module: module}
	if err := conn.open(c); err != nil {
		conn.close()
		return nil, err
	}
	return conn, nil
}

// load loads and initialises the module.
func load(path string) (*pkcs11.Ctx, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, faultf(ErrUnavailable, "PKCS#11 module: %v: install the library of your HSM, or correct PKCS11_MODULE", err)
	}
	module := pkcs11.New(path)
	if module == nil {
		return nil, faultf(ErrUnavailable, "PKCS#11 module %s cannot be loaded: it is no PKCS#11 library for this machine, or lacks a library that it needs (see: ldd %s)", path, path)
	}
	if err := module.Initialize(); err != nil && !is(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
		module.Destroy()
		return nil, unavailable(err, "PKCS#11 module %s cannot be initialised", path)
	}
	return module, nil
}

func (c *connection) open(config Config) error {
	if err := c.findToken(config.Token); err != nil {
		return err
	}
	if err := c.pinState(config); err != nil {
		return err
	}
	return c.start(config)
}

// start opens the session that stays and logs in.
func (c *connection) start(config Config) error {
	var err error
	if c.keeper, err = c.openSession(); err != nil {
		return unavailable(err, "open a session with the %s", config.Token)
	}
	c.sessions = newPool(c, sessionLimit(config.MaxSessions, c.token.MaxSessionCount))
	return c.login(config)
}

// findToken requires exactly one token that matches.
func (c *connection) findToken(want TokenID) error {
	slots, err := c.module.GetSlotList(true)
	if err != nil {
		return unavailable(err, "list the slots")
	}
	var found, seen []string
	for _, slot := range slots {
		info, err := c.module.GetTokenInfo(slot)
		if err != nil || info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		this := TokenID{Slot: &slot, Label: trim(info.Label), Serial: trim(info.SerialNumber)}
		seen = append(seen, this.String())
		if want.matches(this) {
			found = append(found, this.String())
			c.slot, c.token = slot, info
		}
	}
	switch {
	case len(found) == 1:
		return nil
	case len(found) > 1:
		return faultf(ErrUnavailable, "there are %d tokens that match (%s): name one by PKCS11_SLOT, PKCS11_TOKEN_LABEL and PKCS11_TOKEN_SERIAL", len(found), strings.Join(found, "; "))
	case len(seen) == 0:
		return faultf(ErrUnavailable, "the %s is not there: the module shows no initialised token at all", want)
	}
	return faultf(ErrUnavailable, "the %s is not there: the module shows %s", want, strings.Join(seen, "; "))
}

func (t TokenID) matches(this TokenID) bool {
	return (t.Slot == nil || *t.Slot == *this.Slot) &&
		(t.Label == "" || t.Label == this.Label) &&
		(t.Serial == "" || t.Serial == this.Serial)
}

// trim removes the padding of PKCS#11's fixed-length texts.
func trim(s string) string { return strings.TrimRight(s, " \x00") }

func (c *connection) openSession() (pkcs11.SessionHandle, error) {
	return c.module.OpenSession(c.slot, pkcs11.CKF_SERIAL_SESSION)
}

// pinState refuses to try a PIN when one more failure would lock the token, or when it
// is locked already.
func (c *connection) pinState(config Config) error {
	switch flags := c.token.Flags; {
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return faultf(ErrPIN, "the user PIN of the %s is locked: have the security officer set a new one", config.Token)
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return faultf(ErrPIN, "the %s allows one more try of the PIN before it locks: log in by hand with the right PIN first, which resets the counter", config.Token)
	}
	return nil
}

// login tries the PIN once.
func (c *connection) login(config Config) error {
	err := c.module.Login(c.keeper, pkcs11.CKU_USER, string(config.PIN))
	switch {
	case err == nil || is(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN):
		return nil
	case isPIN(err):
		return faultf(ErrPIN, "the %s refused the PIN: %s; correct PKCS11_PIN or PKCS11_PIN_FILE before starting again, since tokens lock after a few tries", config.Token, explain(err))
	}
	return unavailable(err, "log in to the %s", config.Token)
}

// findKey requires exactly one private key that matches.
func (c *connection) findKey(want KeyID) error {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)}
	if want.Label != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, want.Label))
	}
	if len(want.ID) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, want.ID))
	}
	handles, err := c.find(template)
	switch {
	case err != nil:
		return unavailable(err, "look for the %s", want)
	case len(handles) == 0:
		return faultf(ErrKey, "there is no private %s in the token; it holds %s", want, c.describeKeys())
	case len(handles) > 1:
		return faultf(ErrKey, "there is more than one private %s in the token; it holds %s: name one by CA_KEY_LABEL and CA_KEY_ID", want, c.describeKeys())
	}
	c.key = handles[0]
	return nil
}

// find returns at most a few objects that match the template.
func (c *connection) find(template []*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	const most = 32
	if err := c.module.FindObjectsInit(c.keeper, template); err != nil {
		return nil, err
	}
	handles, _, err := c.module.FindObjects(c.keeper, most)
	return handles, errors.Join(err, c.module.FindObjectsFinal(c.keeper))
}

// describeKeys lists the private keys in the token.
func (c *connection) describeKeys() string {
	handles, err := c.find([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)})
	if err != nil || len(handles) == 0 {
		return "no private key"
	}
	var all []string
	for _, handle := range handles {
		id := KeyID{}
		if v, err := c.attribute(handle, pkcs11.CKA_LABEL); err == nil {
			id.Label = string(v)
		}
		if v, err := c.attribute(handle, pkcs11.CKA_ID); err == nil {
			id.ID = v
		}
		all = append(all, "the "+id.String())
	}
	return strings.Join(all, ", ")
}

// attribute reads one attribute; some modules refuse a whole query for one attribute that they do
// not know.
func (c *connection) attribute(object pkcs11.ObjectHandle, kind uint) ([]byte, error) {
	values, err := c.module.GetAttributeValue(c.keeper, object, []*pkcs11.Attribute{pkcs11.NewAttribute(kind, nil)})
	if err != nil {
		return nil, err
	}
	if len(values) != 1 {
		return nil, fmt.Errorf("the module answered %d values for one attribute", len(values))
	}
	return values[0].Value, nil
}

// sign makes one signature on a session of the pool. After an error the session is closed:
// its operation may still be active.
func (c *connection) sign(ctx context.Context, m mechanism, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	mech, input, err := m.prepare(digest, opts)
	if err != nil {
		return nil, err
	}
	session, err := c.sessions.acquire(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.module.SignInit(session, mech, c.key); err != nil {
		c.sessions.discard(session)
		return nil, err
	}
	raw, err := c.module.Sign(session, input)
	if err != nil {
		c.sessions.discard(session)
		return nil, err
	}
	c.sessions.release(session)
	return m.finish(raw)
}

// close ends the connection. No call may be in flight.
func (c *connection) close() {
	if c.keeper != 0 {
		// Not C_Logout: the login belongs to every session of this application.
		_ = c.module.CloseAllSessions(c.slot)
	}
	_ = c.module.Finalize()
	c.module.Destroy()
}
