//go:build cgo

package cryptoki

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/ckr"
	"hsm-signer/hsm/csign"
)

// A module is a PKCS#11 module that is loaded and initialised, for all its users. When it is
// finalised, another one takes its place. A call into it may hang forever, so no caller waits
// longer than a timeout: the call is abandoned, which costs one thread, and counted. The module is
// never finalised while a call is in flight.
type module struct {
	ctx     *pkcs11.Ctx // nil while it is being loaded
	signing csign.Functions
	ready   bool // it is initialised, and not about to be finalised; guarded as loading is

	mu        sync.Mutex
	ended     bool // no call begins any more
	inFlight  int
	abandoned int           // of the calls in flight
	drained   chan struct{} // closed when no call is in flight; nil: nobody waits for that
	owners    map[pkcs11.SessionHandle]*Connection
}

// load loads and initialises the module. If either hangs, it returns an error and the module, which
// must not be loaded again until it could be closed.
func (u *User) load(ctx context.Context) (*module, error) {
	path, m := u.config.Module, &module{owners: map[pkcs11.SessionHandle]*Connection{}}
	if _, err := os.Stat(path); err != nil {
		return nil, Faultf(ErrUnavailable, "PKCS#11 module: %v: install the library of your "+
			"HSM, or correct PKCS11_MODULE", err)
	}
	by := caller{u, m}
	loaded, err := call(ctx, by, u.config.Timeout, "dlopen",
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
	u.counts.Initialised.Add(1)
	err = by.do(ctx, u.config.Timeout, "C_Initialize", func() error { return loaded.Initialize() })
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

// close finalises and unloads the module, and reports whether it could. It waits for calls in
// flight, and lets no more begin. While one does not return, C_Finalize included, the module must
// neither be used nor loaded again.
func (m *module) close(ctx context.Context, u *User) bool {
	if !m.end(ctx, u.config.Timeout) {
		return false
	}
	if m.ctx == nil {
		return true
	}
	m.ready = false
	_ = caller{u, m}.do(context.WithoutCancel(ctx), closeTimeout, callFinalize,
		func() error { return m.ctx.Finalize() })
	if !m.idle() {
		return false
	}
	m.ctx.Destroy()
	return true
}

// closeTimeout bounds calls that only clean up.
const closeTimeout = time.Second

// end lets no more calls begin, and waits for those in flight, of which none may have been
// abandoned. If one does not return in time, end lets calls begin again and returns false.
func (m *module) end(ctx context.Context, timeout time.Duration) bool {
	m.mu.Lock()
	if m.abandoned > 0 {
		m.mu.Unlock()
		return false
	}
	m.ended = true
	drained := make(chan struct{})
	if m.inFlight == 0 {
		close(drained)
	} else {
		m.drained = drained
	}
	m.mu.Unlock()
	patience := time.NewTimer(timeout)
	defer patience.Stop()
	select {
	case <-drained:
	case <-patience.C:
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drained, m.ended = nil, m.inFlight == 0
	return m.ended
}

// idle reports whether no call is in flight.
func (m *module) idle() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.inFlight == 0
}

// own notes that the connection has the session. If another one had a session with this handle, the
// module has lost all sessions and numbers them from the start: the other uses and closes none of
// its own any more.
func (m *module) own(session pkcs11.SessionHandle, c *Connection) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if former := m.owners[session]; former != nil && former != c {
		former.lost.Store(true)
		for handle, owner := range m.owners {
			if owner == former {
				delete(m.owners, handle)
			}
		}
	}
	m.owners[session] = c
}

// disown reports whether the connection, or nobody, has the session, and notes that nobody has.
func (m *module) disown(session pkcs11.SessionHandle, c *Connection) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if owner := m.owners[session]; owner != nil && owner != c {
		return false
	}
	delete(m.owners, session)
	return true
}

// Describe returns what the module says about itself (C_GetInfo).
func (u *User) Describe(ctx context.Context) (string, error) {
	info, err := u.info(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: %s by %s, version %d.%d, for PKCS#11 %d.%d", u.config.Module,
		trim(info.LibraryDescription), trim(info.ManufacturerID),
		info.LibraryVersion.Major, info.LibraryVersion.Minor, info.CryptokiVersion.Major,
		info.CryptokiVersion.Minor), nil
}

func (u *User) info(ctx context.Context) (pkcs11.Info, error) {
	m := u.on
	info, err := call(ctx, caller{u, m}, u.config.Timeout, "C_GetInfo",
		func() (pkcs11.Info, error) { return m.ctx.GetInfo() }, nil)
	if err != nil {
		return info, Unavailable(err, "ask the module %s what it is", u.config.Module)
	}
	return info, nil
}

// identify returns an error if the module is not the one that the configuration names.
func (u *User) identify(ctx context.Context) error {
	want := u.config.Library
	if u.named == u.on || want == (LibraryID{}) {
		return nil
	}
	info, err := u.info(ctx)
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
			u.config.Module, is.Description, is.Manufacturer, version.Major, version.Minor)
	}
	u.named = u.on
	return nil
}
