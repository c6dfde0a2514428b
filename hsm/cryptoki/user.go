//go:build cgo

package cryptoki

import (
	"cmp"
	"context"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/ckr"
)

// A User uses a module for one key. A process has a module once, however many keys it has there:
// C_Initialize, C_Finalize and the logins are the process's, so all users of a path share a module,
// and those of a token its logins. If a user has the module initialised again, the connections of
// the others end ([ErrEnded]), and each must make another one. While such a connection works, that
// is put off; see [User.Unload].
//
// Only one goroutine at a time may use a User, except for its connections.
type User struct {
	config Config
	counts *Counts
	shared *shared
	most   int // no more calls are made while so many of its own hang

	on     *module // that was last used; never nil
	named  *module // that matches the LibraryID
	stale  []pkcs11.SessionHandle
	joined bool

	logins atomic.Pointer[logins] // to the token that was last used; never nil
	worked atomic.Int64           // when a call last succeeded, in ns since start

	abandoned int // of its calls in flight; guarded by the mutex of the module that it is on

	// Guarded by the mutex of shared.
	connected bool      // it has a connection to the module that it is on
	troubled  time.Time // since when it has had no connection that works; zero: it has
}

// MoreHangs is how many calls may hang in addition to one for each session. It is more than
// accumulate until the key gives up.
const MoreHangs = 32

// NewUser returns a user of the module of the configuration, which is not loaded yet. It counts its
// calls in n.
func NewUser(c Config, n *Counts) *User {
	u := &User{config: c, counts: n, shared: sharedOf(c.Module), on: &module{},
		most: cmp.Or(c.MaxSessions, mostSessions) + MoreHangs}
	u.logins.Store(&logins{})
	return u
}

// shared is what the users of one module share.
type shared struct {
	// loading is held while the module is loaded or finalised.
	loading chan struct{}

	mu     sync.Mutex
	module *module // nil: not loaded
	users  map[*User]bool
	logins map[string]*logins // by the token
	// When the module may be finalised although a connection works, and how long it was spared
	// before; zero: nobody wants that.
	spareUntil time.Time
	spared     time.Duration
}

// modules has an entry for each module that was ever named, by its path without links.
var modules sync.Map

func sharedOf(path string) *shared {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	s, _ := modules.LoadOrStore(path, &shared{loading: make(chan struct{}, 1),
		users: map[*User]bool{}, logins: map[string]*logins{}})
	return s.(*shared)
}

// lock waits for others who load or finalise the module.
func (s *shared) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case s.loading <- struct{}{}:
		return func() { <-s.loading }, nil
	case <-ctx.Done():
		return nil, Faultf(ErrUnavailable, "timed out waiting for another key of this process, "+
			"for which the PKCS#11 module is being initialised: %v", context.Cause(ctx))
	}
}

// current returns the module that is loaded, or nil.
func (s *shared) current() *module {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.module
}

func (s *shared) set(m *module) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.module = m
}

// Load loads and initialises the module unless another user has. If that hangs, or a former
// C_Finalize does, it returns an error.
func (u *User) Load(ctx context.Context) error {
	s := u.shared
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	m := s.current()
	if m != nil && !m.ready {
		if !m.close(ctx, u) {
			return Faultf(ErrUnavailable, "dlopen, C_Initialize or C_Finalize has not returned "+
				"from the PKCS#11 module %s yet", u.config.Module)
		}
		m = nil
	}
	if m == nil {
		m, err = u.load(ctx)
		s.set(m)
	}
	if m != nil {
		u.use(m)
	}
	return err
}

// use notes that the user is on the module.
func (u *User) use(m *module) {
	if u.on != m {
		u.on, u.stale = m, nil
	}
	u.shared.mu.Lock()
	defer u.shared.mu.Unlock()
	u.shared.users[u], u.joined = true, true
}

// Loaded reports whether the module that the user was last on is loaded, or could not be closed.
func (u *User) Loaded() bool { return u.joined && u.shared.current() == u.on }

// Busy reports whether a call of the user hangs.
func (u *User) Busy() bool {
	u.on.mu.Lock()
	defer u.on.mu.Unlock()
	return u.abandoned > 0
}

// Unload has the module loaded again for the next connection, and reports whether it is finalised.
// It is not while a call hangs, nor while another user is connected. If the module is suspect, that
// user must have had an answer since this one lost its connection. After a while, and again after
// longer ones, the module is finalised anyway.
func (u *User) Unload(ctx context.Context, suspect bool) bool {
	return u.unload(ctx, func() bool { return u.shared.spares(u, suspect) })
}

// UnloadNow is Unload although a connection of another user works.
func (u *User) UnloadNow(ctx context.Context) bool {
	return u.unload(ctx, func() bool { return false })
}

func (u *User) unload(ctx context.Context, spared func() bool) bool {
	if !u.Loaded() {
		return true // never loaded, or replaced already
	}
	unlock, err := u.shared.lock(ctx)
	if err != nil {
		return false
	}
	defer unlock()
	if !u.Loaded() {
		return true
	}
	if spared() || !u.on.close(ctx, u) {
		return false
	}
	u.shared.set(nil)
	return true
}

// Leave ends the use of the module, and reports whether the user has left nothing behind. The last
// user to leave finalises the module. Then nothing is known of logins any more, as after a restart.
func (u *User) Leave(ctx context.Context) bool {
	s := u.shared
	s.mu.Lock()
	delete(s.users, u)
	last := len(s.users) == 0
	if last && s.module != nil {
		u.on = s.module
	}
	s.mu.Unlock()
	if !last {
		return !u.Busy()
	}
	if !u.UnloadNow(ctx) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.users) == 0 {
		s.logins = map[string]*logins{}
	}
	return true
}

// How long a connection that works is spared by those that want the module initialised again.
const (
	firstSpared = time.Minute
	lastSpared  = 15 * time.Minute
)

// spares reports whether the module must not be finalised for the user now.
func (s *shared) spares(u *User, suspect bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	switch {
	case !s.othersWork(u, suspect):
		return false
	case s.spareUntil.IsZero():
		s.spareUntil, s.spared = now.Add(firstSpared), firstSpared
		return true
	case now.Before(s.spareUntil):
		return true
	}
	s.spared = min(2*s.spared, lastSpared)
	s.spareUntil = now.Add(s.spared)
	return false
}

// othersWork reports whether another user is connected, and has had an answer since the user has
// none if the module is suspect. The caller must hold mu.
func (s *shared) othersWork(u *User, suspect bool) bool {
	for other := range s.users {
		if other != u && other.connected &&
			(!suspect || other.worked.Load() > sinceStart(u.troubled)) {
			return true
		}
	}
	return false
}

// start is before every time that is compared; the monotonic clock counts from here.
var start = time.Now().Add(-time.Hour)

func sinceStart(t time.Time) int64 { return int64(t.Sub(start)) }

// Lost says that the user's connection has failed, or that it has none.
func (u *User) Lost() {
	u.shared.mu.Lock()
	defer u.shared.mu.Unlock()
	u.connected = false
	if u.troubled.IsZero() {
		u.troubled = time.Now()
	}
}

// Works says that the user's new connection works.
func (u *User) Works() {
	s := u.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	u.connected, u.troubled = true, time.Time{}
	for other := range s.users {
		if !other.connected {
			return
		}
	}
	s.spareUntil = time.Time{}
}

// Undecided reports whether an abandoned login is in flight: it may still turn out to have had a
// wrong PIN. After LastLoginRetry, when another login would be tried anyway, it no longer counts.
func (u *User) Undecided() bool {
	s := u.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.logins {
		if l.undecided() {
			return true
		}
	}
	return u.logins.Load().undecided()
}

// MayKnowAnother reports whether another PIN was tried with the module and the token: some modules
// read the PIN's hash only when they are initialised, and then compare with the old one.
func (u *User) MayKnowAnother(pin PIN) bool {
	return u.Loaded() && u.logins.Load().triedAnother(u.on, pin)
}

// Do makes a call that this package has no method for, and passes the binding of the module to it.
// It waits for the timeout of the configuration at most.
func (u *User) Do(ctx context.Context, name string, f func(*pkcs11.Ctx) error) error {
	by := caller{u, u.on}
	return by.do(ctx, u.config.Timeout, name, func() error { return f(by.module.ctx) })
}

// answered notes that a call of the user has had an answer.
func (u *User) answered(err error) {
	if err == nil {
		u.worked.Store(sinceStart(time.Now()))
	}
}

// loginKey names the token for the logins that its users share, whatever slot it is in.
func (c *Connection) loginKey() string {
	t := c.token
	return trim(t.ManufacturerID) + "|" + trim(t.Model) + "|" + trim(t.SerialNumber) + "|" +
		trim(t.Label)
}

// loginsOf returns the logins to the token of the connection.
func (s *shared) loginsOf(token string) *logins {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.logins[token] == nil {
		s.logins[token] = &logins{}
	}
	return s.logins[token]
}

// logins are those of this process to one token. A PIN that the token has rejected is not tried
// again, whichever key it is for, and after a login that may have had a wrong PIN there is a pause
// for all. It is safe for concurrent use.
type logins struct {
	turn sync.Mutex // held during a login

	mu      sync.Mutex
	hanging time.Time // when a login that is in flight was abandoned; zero: there is none
	tried   PIN       // with the module
	with    *module
	failed  *Fault // of the last login that was made; nil: it succeeded
	until   time.Time
	wait    time.Duration
}

// allow returns an error if the PIN must not be tried now.
func (l *logins) allow(pin PIN) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.failed == nil:
		return nil
	case ckr.IsPIN(l.failed.Cause) && l.tried == pin, time.Now().Before(l.until):
		return l.failed
	}
	return nil
}

// begin notes that the PIN is tried.
func (l *logins) begin(pin PIN, with *module) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried, l.with = pin, with
}

// end notes the answer of the token, however late. An answer that says nothing of the PIN changes
// nothing.
func (l *logins) end(pin PIN, token TokenID, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.failed, l.until, l.wait = nil, time.Time{}, 0
	case ckr.IsPIN(err):
		l.failed, l.until = LoginFault(pin, token, err), time.Time{}
	case ckr.MayBePIN(err):
		l.failed = LoginFault(pin, token, err)
		l.wait = min(max(2*l.wait, FirstLoginRetry), LastLoginRetry)
		l.until = time.Now().Add(l.wait)
	}
}

// triedAnother reports whether another PIN was tried with the module.
func (l *logins) triedAnother(with *module, pin PIN) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.with == with && l.tried != pin
}

// undecided reports whether an abandoned login may still have had a wrong PIN.
func (l *logins) undecided() bool {
	since := l.hangingSince()
	return !since.IsZero() && time.Since(since) < LastLoginRetry
}

func (l *logins) hangingSince() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hanging
}

func (l *logins) hang(since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hanging = since
}
