//go:build cgo

package cryptoki

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/ckr"
	"hsm-signer/hsm/csign"
)

// A Module is a PKCS#11 module that is loaded and initialised. A call into it may hang forever, so
// no caller waits longer than a timeout: the call is abandoned, which costs one thread, and
// counted. The module is never finalised while a call is in flight. Its methods are safe for
// concurrent use, except that only one goroutine may open and close connections and the module.
type Module struct {
	config Config
	ctx    *pkcs11.Ctx // nil while it is being loaded
	counts *Counts
	most   int  // no more calls are made while so many hang
	ready  bool // it is initialised, and not about to be finalised
	named  bool // it matches the LibraryID

	signing csign.Functions
	stale   []pkcs11.SessionHandle // left open by earlier connections; guarded as the connection is

	mu        sync.Mutex
	tried     PINSource // the PIN that was last tried with it
	inFlight  int
	abandoned int       // of the calls in flight
	loggingIn time.Time // when a login in flight was abandoned; zero: there is none
}

// MoreHangs is how many calls may hang in addition to one for each session. It is more than
// accumulate until the key gives up.
const MoreHangs = 32

// New returns the module of the configuration, not loaded yet. It counts its calls in n.
func New(c Config, n *Counts) *Module {
	return &Module{config: c, counts: n,
		most: cmp.Or(c.MaxSessions, mostSessions) + MoreHangs}
}

// Load loads and initialises the module. If either hangs, it returns an error and the module, which
// must not be loaded again until [Module.Close] returns true.
func Load(ctx context.Context, c Config, n *Counts) (*Module, error) {
	path := c.Module
	if _, err := os.Stat(path); err != nil {
		return nil, Faultf(ErrUnavailable, "PKCS#11 module: %v: install the library of your "+
			"HSM, or correct PKCS11_MODULE", err)
	}
	m := New(c, n)
	loaded, err := call(ctx, m, c.Timeout, "dlopen",
		func() (*pkcs11.Ctx, error) { return pkcs11.New(path), nil },
		func(late *pkcs11.Ctx, _ error) { late.Destroy() })
	switch {
	case err != nil: // loading a library runs its code
		return m, Unavailable(err, "PKCS#11 module %s cannot be loaded", path)
	case loaded == nil:
		return nil, Faultf(ErrUnavailable, "PKCS#11 module %s cannot be loaded: it is not a "+
			"PKCS#11 library for this machine, or it lacks a library that it needs (ldd %s "+
			"shows which)", path, path)
	}
	if m.signing, err = csign.Of(loaded); err != nil {
		loaded.Destroy()
		return nil, Faultf(ErrUnavailable, "PKCS#11 module %s cannot be used: %v", path, err)
	}
	m.ctx = loaded
	n.Initialised.Add(1)
	err = m.do(ctx, c.Timeout, "C_Initialize", func() error { return loaded.Initialize() })
	switch {
	case err == nil || ckr.Is(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED):
		m.ready = true
		return m, nil
	case m.idle():
		loaded.Destroy()
		m = nil
	}
	return m, Unavailable(err, "PKCS#11 module %s cannot be initialised", path)
}

// Ready reports whether the module is initialised, and not about to be finalised.
func (m *Module) Ready() bool { return m.ready }

// Describe returns what the module says about itself (C_GetInfo).
func (m *Module) Describe(ctx context.Context) (string, error) {
	info, err := m.info(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: %s by %s, version %d.%d, for PKCS#11 %d.%d", m.config.Module,
		trim(info.LibraryDescription), trim(info.ManufacturerID),
		info.LibraryVersion.Major, info.LibraryVersion.Minor, info.CryptokiVersion.Major,
		info.CryptokiVersion.Minor), nil
}

func (m *Module) info(ctx context.Context) (pkcs11.Info, error) {
	info, err := call(ctx, m, m.config.Timeout, "C_GetInfo",
		func() (pkcs11.Info, error) { return m.ctx.GetInfo() }, nil)
	if err != nil {
		return info, Unavailable(err, "ask the module %s what it is", m.config.Module)
	}
	return info, nil
}

// identify returns an error if the module is not the one that the configuration names.
func (m *Module) identify(ctx context.Context) error {
	want := m.config.Library
	if m.named || want == (LibraryID{}) {
		return nil
	}
	info, err := m.info(ctx)
	if err != nil {
		return err
	}
	is := LibraryID{trim(info.ManufacturerID), trim(info.LibraryDescription), nil}
	version := Version{info.LibraryVersion.Major, info.LibraryVersion.Minor}
	if want.Manufacturer != "" && want.Manufacturer != is.Manufacturer ||
		want.Description != "" && want.Description != is.Description ||
		want.Version != nil && *want.Version != version {
		return Faultf(ErrUnavailable, "the PKCS#11 module %s is %q by %q, version %d.%d, not the "+
			"library that PKCS11_URI names",
			m.config.Module, is.Description, is.Manufacturer, version.Major, version.Minor)
	}
	m.named = true
	return nil
}

// Close finalises and unloads the module, and reports whether it could. While a call is in flight,
// C_Finalize included, the module must neither be used nor loaded again.
func (m *Module) Close(ctx context.Context) bool {
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

// MayKnowAnother reports whether another PIN was tried with the module: some modules read the PIN's
// hash only when they are initialised, and then compare with the old one.
func (m *Module) MayKnowAnother(pin PIN) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tried == nil {
		return false
	}
	before, _ := m.tried()
	return before != pin
}

// tries records that the PIN is tried.
func (m *Module) tries(pin PIN) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tried = pin.Fixed()
}

// Undecided reports whether an abandoned login is in flight: it may still turn out to have had a
// wrong PIN. After LastLoginRetry, when another login would be tried anyway, it no longer counts.
func (m *Module) Undecided() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mayStillCount()
}

// mayStillCount is Undecided; the caller must hold mu.
func (m *Module) mayStillCount() bool {
	return !m.loggingIn.IsZero() && time.Since(m.loggingIn) < LastLoginRetry
}

// idle reports whether no call is in flight.
func (m *Module) idle() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.inFlight == 0
}
