//go:build cgo

package cryptoki

import (
	"context"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/ckr"
)

// sessionLimit returns how many sessions may sign at once. token is how many the token allows in
// all: 0 is no limit and all ones is unknown (PKCS#11, CK_TOKEN_INFO). One of them is the login
// session.
func sessionLimit(wanted int, token uint) int {
	const effectivelyInfinite, unavailable = 0, ^uint(0)
	if token == effectivelyInfinite || token == unavailable {
		return wanted
	}
	return max(1, min(wanted, int(min(token, 1<<16))-1))
}

// A pool keeps the sessions of a connection, last in, first out, so that no more are open than are
// needed.
type pool struct {
	conn    *Connection
	permits chan struct{} // one for each session that may be in use
	freed   chan struct{} // a session came back while somebody waited for one

	mu   sync.Mutex
	idle []pkcs11.SessionHandle
	open map[pkcs11.SessionHandle]bool // sessions of the pool, idle or in use
}

func newPool(conn *Connection, limit int) *pool {
	return &pool{conn: conn, permits: make(chan struct{}, limit), freed: make(chan struct{}, 1),
		open: map[pkcs11.SessionHandle]bool{}}
}

// sessionRetry is the wait before a token that had no free session is asked again. Other
// applications may hold them, and nothing tells when they close one.
const sessionRetry = 100 * time.Millisecond

// acquire waits for a session until the context ends.
func (p *pool) acquire(ctx context.Context) (pkcs11.SessionHandle, error) {
	if ctx.Err() != nil {
		return 0, p.busy(ctx)
	}
	select {
	case p.permits <- struct{}{}:
	case <-ctx.Done():
		return 0, p.busy(ctx)
	}
	for {
		session, err := p.take(ctx)
		if err == nil {
			return session, nil
		}
		if !ckr.Is(err, pkcs11.CKR_SESSION_COUNT) {
			<-p.permits
			return 0, err
		}
		select {
		case <-p.freed:
		case <-time.After(sessionRetry):
		case <-ctx.Done():
			<-p.permits
			return 0, p.busy(ctx)
		}
	}
}

// busy returns the error if no session became free in time.
func (p *pool) busy(ctx context.Context) error {
	return Faultf(ErrUnavailable, "no PKCS#11 session became free (at most %d are in use at once; "+
		"see PKCS11_MAX_SESSIONS): %v", cap(p.permits), context.Cause(ctx))
}

// take returns an idle session, or a new one. If the token has no other session, it returns the
// login session.
func (p *pool) take(ctx context.Context) (pkcs11.SessionHandle, error) {
	if session, ok := p.pop(); ok {
		return session, nil
	}
	session, err := p.conn.openSession(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil && (p.open[session] || session == p.conn.loginSession):
		// The module has lost its sessions and numbers them from the start: this handle is in use,
		// and no two callers may share a session.
		return 0, pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID)
	case err == nil:
	case ckr.Is(err, pkcs11.CKR_SESSION_COUNT) && len(p.open) == 0:
		session = p.conn.loginSession
	default:
		return 0, err
	}
	p.open[session] = true
	return session, nil
}

func (p *pool) pop() (pkcs11.SessionHandle, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.idle) - 1
	if last < 0 {
		return 0, false
	}
	session := p.idle[last]
	p.idle = p.idle[:last]
	return session, true
}

// release returns a healthy session.
func (p *pool) release(session pkcs11.SessionHandle) {
	p.mu.Lock()
	p.idle = append(p.idle, session)
	p.mu.Unlock()
	p.free()
}

// discard closes a session in which a call failed: its operation may still be active. The login
// session closes only with its connection.
func (p *pool) discard(session pkcs11.SessionHandle) {
	if session != p.conn.loginSession {
		_ = p.conn.closeSession(session)
	}
	p.drop(session) // not before: closing must not hit another session under the same handle
	p.free()
}

// forget drops a session in which a call hangs; the call closes it when it returns.
func (p *pool) forget(session pkcs11.SessionHandle) {
	p.drop(session)
	p.free()
}

func (p *pool) drop(session pkcs11.SessionHandle) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, session)
}

func (p *pool) free() {
	<-p.permits
	select {
	case p.freed <- struct{}{}:
	default:
	}
}

// counts returns the counts. It does not wait for calls into the module.
func (p *pool) counts() Sessions {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := Sessions{Open: len(p.open), InUse: len(p.open) - len(p.idle), Most: cap(p.permits)}
	if !p.open[p.conn.loginSession] {
		n.Open++
	}
	return n
}

// drain takes the idle sessions out of the pool.
func (p *pool) drain() []pkcs11.SessionHandle {
	p.mu.Lock()
	defer p.mu.Unlock()
	idle := p.idle
	p.idle = nil
	return idle
}
