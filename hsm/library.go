package hsm

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// A library is a PKCS#11 module that was loaded and initialised. A call into it may hang forever,
// so nobody waits for one longer than its time: it is abandoned, which costs one thread, and
// counted. While a call is in flight the module is never finalised.
type library struct {
	module *pkcs11.Ctx // nil while it is being loaded
	counts *counts
	most   int                    // calls that may hang before no more are made
	ready  bool                   // it is initialised, and not about to be finalised
	named  bool                   // it said of itself what it must
	stale  []pkcs11.SessionHandle // left open by earlier connections; guarded as the connection is

	mu        sync.Mutex
	tried     PINSource // the PIN that was last tried with it
	inFlight  int
	abandoned int       // those in flight that nobody waits for
	loggingIn time.Time // when one of them, a login, was abandoned; zero: none of them is one
}

// moreHangs is how many calls may hang in addition to one per session: more than hsm-signer leaves behind before it gives up.
const moreHangs = 32

// load loads and initialises the module. When either hangs it returns both the library, which must not
// be loaded again meanwhile, and the error.
func load(ctx context.Context, c Config, n *counts) (*library, error) {
	path := c.Module
	if _, err := os.Stat(path); err != nil {
		return nil, faultf(ErrUnavailable, "PKCS#11 module: %v: install the library of your HSM, or correct PKCS11_MODULE", err)
	}
	l := &library{counts: n, most: c.MaxSessions + moreHangs}
	module, err := call(ctx, l, c.Timeout, "dlopen", func() (*pkcs11.Ctx, error) { return pkcs11.New(path), nil },
		func(late *pkcs11.Ctx, _ error) { late.Destroy() })
	switch {
	case err != nil: // a library may do as it likes while it is loaded
		return l, unavailable(err, "PKCS#11 module %s cannot be loaded", path)
	case module == nil:
		return nil, faultf(ErrUnavailable, "PKCS#11 module %s cannot be loaded: it is no PKCS#11 library for this machine, or lacks a library that it needs (see: ldd %s)", path, path)
	}
	l.module = module
	n.initialised.Add(1)
	err = l.do(ctx, c.Timeout, "C_Initialize", func() error { return module.Initialize() })
	switch {
	case err == nil || is(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED):
		l.ready = true
		return l, nil
	case l.idle():
		module.Destroy()
		l = nil
	}
	return l, unavailable(err, "PKCS#11 module %s cannot be initialised", path)
}

// A LibraryID says what a library must say of itself (C_GetInfo). What is empty is not asked for.
type LibraryID struct {
	Manufacturer, Description string
	Version                   *URIVersion
}

// identify requires that the library is the one that the configuration names.
func (l *library) identify(ctx context.Context, c Config) error {
	if l.named || c.Library == (LibraryID{}) {
		return nil
	}
	info, err := call(ctx, l, c.Timeout, "C_GetInfo", func() (pkcs11.Info, error) { return l.module.GetInfo() }, nil)
	if err != nil {
		return unavailable(err, "ask the module %s what it is", c.Module)
	}
	is, want := LibraryID{trim(info.ManufacturerID), trim(info.LibraryDescription), nil}, c.Library
	version := URIVersion{info.LibraryVersion.Major, info.LibraryVersion.Minor}
	if want.Manufacturer != "" && want.Manufacturer != is.Manufacturer || want.Description != "" && want.Description != is.Description || want.Version != nil && *want.Version != version {
		return faultf(ErrUnavailable, "the PKCS#11 module %s is %q by %q, version %d.%d, and not the library that PKCS11_URI names", c.Module, is.Description, is.Manufacturer, version.Major, version.Minor)
	}
	l.named = true
	return nil
}

// close finalises and unloads the module, and reports whether it did: while a call is in flight in it,
// be it C_Finalize itself, it must neither be used nor loaded again.
func (l *library) close(ctx context.Context) bool {
	if !l.idle() {
		return false
	}
	if l.module == nil {
		return true
	}
	l.ready = false
	_ = l.do(context.WithoutCancel(ctx), closeTimeout, "C_Finalize", func() error { return l.module.Finalize() })
	if !l.idle() {
		return false
	}
	l.module.Destroy()
	return true
}

// closeTimeout bounds calls that only tidy up.
const closeTimeout = time.Second

// mayKnowAnother reports whether the module may know the PIN as it was: another one was tried with it, and
// some modules read what they compare a PIN with when they are initialised, and not again.
func (l *library) mayKnowAnother(pin PIN) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tried == nil {
		return false
	}
	before, _ := l.tried()
	return before != pin
}

// tries notes that the PIN is tried.
func (l *library) tries(pin PIN) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried = pin.Fixed()
}

// undecided reports whether a login is in flight that nobody waits for: it may still turn out to have
// been one with a wrong PIN. From a time on at which one would try another, that is no reason to wait.
func (l *library) undecided() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mayStillCount()
}

// mayStillCount is undecided. The caller must hold mu.
func (l *library) mayStillCount() bool {
	return !l.loggingIn.IsZero() && time.Since(l.loggingIn) < lastLoginRetry
}

// idle reports whether no call is in flight.
func (l *library) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inFlight == 0
}

// do is [call] for a function without a result.
func (l *library) do(ctx context.Context, timeout time.Duration, name string, f func() error) error {
	_, err := call(ctx, l, timeout, name, func() (struct{}, error) { return struct{}{}, f() }, nil)
	return err
}

// An answer is what a call gave.
type answer[T any] struct {
	value T
	err   error
}

// call makes one call into the module and waits for its answer until its time is up or the context
// ends. The answer that comes after that is given to late.
func call[T any](ctx context.Context, l *library, timeout time.Duration, name string, f func() (T, error), late func(T, error)) (T, error) {
	var none T
	if ctx.Err() != nil {
		return none, faultf(ErrUnavailable, "%s was not called: %v", name, context.Cause(ctx))
	}
	if err := l.begin(name); err != nil {
		return none, err
	}
	patient, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// Whether the answer is taken or the call abandoned is decided once, under the lock.
	answers := make(chan answer[T], 1)
	var taken bool
	go func() {
		value, err := f()
		l.mu.Lock()
		abandoned := taken
		taken = true
		l.mu.Unlock()
		if abandoned && late != nil {
			late(value, err)
		}
		l.end(name, abandoned)
		answers <- answer[T]{value, err}
	}()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-patient.Done():
	}
	l.mu.Lock()
	if taken { // it came at the last moment
		l.mu.Unlock()
		a := <-answers
		return a.value, a.err
	}
	taken = true
	l.abandoned++
	if name == callLogin {
		l.loggingIn = time.Now()
	}
	l.mu.Unlock()
	l.counts.abandoned.Add(1)
	l.counts.hanging.Add(1)
	return none, &abandonedError{name, timeout, context.Cause(ctx)}
}

// callLogin is the one call that must not be made twice at once: each may count as a wrong PIN.
const callLogin = "C_Login"

func (l *library) begin(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case name == callLogin && !l.loggingIn.IsZero(), l.abandoned >= l.most && l.mayStillCount():
		return faultf(ErrUnavailable, "the login that was abandoned at %s has not returned from the token. There is no second login while it may still count as a wrong PIN: check the token, its daemon and the network to it", l.loggingIn.Format(time.TimeOnly))
	case l.abandoned >= l.most:
		return faultf(ErrHung, "%d calls hang in the PKCS#11 module, so no more are made: restart this process, and check the token, its daemon and the network to it", l.abandoned)
	}
	l.inFlight++
	return nil
}

func (l *library) end(name string, abandoned bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inFlight--
	if abandoned {
		l.abandoned--
		l.counts.hanging.Add(-1)
		if name == callLogin {
			l.loggingIn = time.Time{}
		}
	}
}

// abandonedError says that a call did not come back in time.
type abandonedError struct {
	name    string
	timeout time.Duration
	early   error // why the caller could not wait so long; nil: it did, and the token is at fault
}

// Error says which call it was.
func (e *abandonedError) Error() string {
	if e.early != nil {
		return fmt.Sprintf("%s was not waited for: %v", e.name, e.early)
	}
	return e.name + " did not come back within " + e.timeout.String() + ": the token, its daemon or the network to it hangs (PKCS11_TIMEOUT is how long one waits)"
}
