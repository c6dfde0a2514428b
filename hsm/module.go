package hsm

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/ckr"
)

// A module is a PKCS#11 module that is loaded and initialised. A call into it may hang forever, so
// no caller waits longer than a timeout: the call is abandoned, which costs one thread, and
// counted. The module is never finalised while a call is in flight.
type module struct {
	ctx    *pkcs11.Ctx // nil while it is being loaded
	counts *counts
	most   int                    // no more calls are made while so many hang
	ready  bool                   // it is initialised, and not about to be finalised
	named  bool                   // it matches the LibraryID
	stale  []pkcs11.SessionHandle // left open by earlier connections; guarded as the connection is

	mu        sync.Mutex
	tried     PINSource // the PIN that was last tried with it
	inFlight  int
	abandoned int       // of the calls in flight
	loggingIn time.Time // when a login in flight was abandoned; zero: there is none
}

// moreHangs is how many calls may hang in addition to one for each session. It is more than
// accumulate until the key gives up.
const moreHangs = 32

// load loads and initialises the module. If either hangs, it returns an error and the module, which
// must not be loaded again meanwhile.
func load(ctx context.Context, c Config, n *counts) (*module, error) {
	path := c.Module
	if _, err := os.Stat(path); err != nil {
		return nil, faultf(ErrUnavailable, "PKCS#11 module: %v: install the library of your "+
			"HSM, or correct PKCS11_MODULE", err)
	}
	m := &module{counts: n, most: c.MaxSessions + moreHangs}
	loaded, err := call(ctx, m, c.Timeout, "dlopen",
		func() (*pkcs11.Ctx, error) { return pkcs11.New(path), nil },
		func(late *pkcs11.Ctx, _ error) { late.Destroy() })
	switch {
	case err != nil: // loading a library runs its code
		return m, unavailable(err, "PKCS#11 module %s cannot be loaded", path)
	case loaded == nil:
		return nil, faultf(ErrUnavailable, "PKCS#11 module %s cannot be loaded: it is not a "+
			"PKCS#11 library for this machine, or it lacks a library that it needs (ldd %s "+
			"shows which)", path, path)
	}
	m.ctx = loaded
	n.initialised.Add(1)
	err = m.do(ctx, c.Timeout, "C_Initialize", func() error { return loaded.Initialize() })
	switch {
	case err == nil || ckr.Is(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED):
		m.ready = true
		return m, nil
	case m.idle():
		loaded.Destroy()
		m = nil
	}
	return m, unavailable(err, "PKCS#11 module %s cannot be initialised", path)
}

// A Version is a CK_VERSION.
type Version struct{ Major, Minor uint8 }

// A LibraryID is what the module must return from C_GetInfo. Empty fields match anything.
type LibraryID struct {
	Manufacturer, Description string
	Version                   *Version
}

// identify returns an error if the module is not the one that the configuration names.
func (m *module) identify(ctx context.Context, c Config) error {
	if m.named || c.Library == (LibraryID{}) {
		return nil
	}
	info, err := call(ctx, m, c.Timeout, "C_GetInfo",
		func() (pkcs11.Info, error) { return m.ctx.GetInfo() }, nil)
	if err != nil {
		return unavailable(err, "ask the module %s what it is", c.Module)
	}
	is, want := LibraryID{trim(info.ManufacturerID), trim(info.LibraryDescription), nil}, c.Library
	version := Version{info.LibraryVersion.Major, info.LibraryVersion.Minor}
	if want.Manufacturer != "" && want.Manufacturer != is.Manufacturer ||
		want.Description != "" && want.Description != is.Description ||
		want.Version != nil && *want.Version != version {
		return faultf(ErrUnavailable, "the PKCS#11 module %s is %q by %q, version %d.%d, not the "+
			"library that PKCS11_URI names",
			c.Module, is.Description, is.Manufacturer, version.Major, version.Minor)
	}
	m.named = true
	return nil
}

// close finalises and unloads the module, and reports whether it could. While a call is in flight,
// C_Finalize included, the module must neither be used nor loaded again.
func (m *module) close(ctx context.Context) bool {
	if !m.idle() {
		return false
	}
	if m.ctx == nil {
		return true
	}
	m.ready = false
	_ = m.do(context.WithoutCancel(ctx), closeTimeout, "C_Finalize",
		func() error { return m.ctx.Finalize() })
	if !m.idle() {
		return false
	}
	m.ctx.Destroy()
	return true
}

// closeTimeout bounds calls that only clean up.
const closeTimeout = time.Second

// mayKnowAnother reports whether another PIN was tried with the module: some modules read the PIN's
// hash only when they are initialised, and then compare with the old one.
func (m *module) mayKnowAnother(pin PIN) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tried == nil {
		return false
	}
	before, _ := m.tried()
	return before != pin
}

// tries records that the PIN is tried.
func (m *module) tries(pin PIN) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tried = pin.Fixed()
}

// undecided reports whether an abandoned login is in flight: it may still turn out to have had a
// wrong PIN. After lastLoginRetry, when another login would be tried anyway, it no longer counts.
func (m *module) undecided() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mayStillCount()
}

// mayStillCount is undecided; the caller must hold mu.
func (m *module) mayStillCount() bool {
	return !m.loggingIn.IsZero() && time.Since(m.loggingIn) < lastLoginRetry
}

// idle reports whether no call is in flight.
func (m *module) idle() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.inFlight == 0
}

// do is [call] for a function without a result.
func (m *module) do(ctx context.Context, timeout time.Duration, name string, f func() error) error {
	_, err := call(ctx, m, timeout, name, func() (struct{}, error) { return struct{}{}, f() }, nil)
	return err
}

// An answer is the result of a call.
type answer[T any] struct {
	value T
	err   error
}

// call makes one call into the module and waits for its answer until the timeout or until the
// context ends. An answer after that is passed to late.
func call[T any](ctx context.Context, m *module, timeout time.Duration, name string,
	f func() (T, error), late func(T, error)) (T, error) {
	var none T
	if ctx.Err() != nil {
		return none, faultf(ErrUnavailable, "%s was not called: %v", name, context.Cause(ctx))
	}
	if err := m.begin(name); err != nil {
		return none, err
	}
	patient, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// Whether the answer is taken or the call is abandoned is decided once, under the lock.
	answers := make(chan answer[T], 1)
	var taken bool
	go func() {
		value, err := f()
		m.mu.Lock()
		abandoned := taken
		taken = true
		m.mu.Unlock()
		if abandoned && late != nil {
			late(value, err)
		}
		m.end(name, abandoned)
		answers <- answer[T]{value, err}
	}()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-patient.Done():
	}
	m.mu.Lock()
	if taken { // the answer came just in time
		m.mu.Unlock()
		a := <-answers
		return a.value, a.err
	}
	taken = true
	m.abandoned++
	if name == callLogin {
		m.loggingIn = time.Now()
	}
	m.mu.Unlock()
	m.counts.abandoned.Add(1)
	m.counts.hanging.Add(1)
	return none, &abandonedError{name, timeout, context.Cause(ctx)}
}

// callLogin is the only call that must not be in flight twice: each may count as a wrong PIN.
const callLogin = "C_Login"

func (m *module) begin(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case name == callLogin && !m.loggingIn.IsZero(), m.abandoned >= m.most && m.mayStillCount():
		return faultf(ErrUnavailable, "the login that timed out at %s has not returned from the "+
			"token: hsm-signer does not log in again while it may still count as a wrong PIN; "+
			"check the token, its daemon and the network to it",
			m.loggingIn.Format(time.TimeOnly))
	case m.abandoned >= m.most:
		return faultf(ErrHung, "%d calls hang in the PKCS#11 module, which is the limit: "+
			"restart hsm-signer, and check the token, its daemon and the network to it",
			m.abandoned)
	}
	m.inFlight++
	return nil
}

func (m *module) end(name string, abandoned bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inFlight--
	if abandoned {
		m.abandoned--
		m.counts.hanging.Add(-1)
		if name == callLogin {
			m.loggingIn = time.Time{}
		}
	}
}

// An abandonedError is the error of a call that did not return in time.
type abandonedError struct {
	name    string
	timeout time.Duration
	// why the caller could not wait for the timeout; nil: it did, and the token is at fault
	early error
}

// Error names the call.
func (e *abandonedError) Error() string {
	if e.early != nil {
		return fmt.Sprintf("stopped waiting for %s: %v", e.name, e.early)
	}
	return fmt.Sprintf("%s did not return within %s (PKCS11_TIMEOUT): the token, its daemon or "+
		"the network to it hangs",
		e.name, e.timeout)
}
