//go:build cgo

package cryptoki

import (
	"context"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/ckr"
)

// The sessions that may sign at once if the configuration does not say: firstSessions, and while
// signatures are slow up to mostSessions. A signature is slow if its two calls take slowSignature
// together, as on a network HSM: 16 sessions then make 1,600 signatures a second at most.
const (
	firstSessions = 16
	mostSessions  = 64
	slowSignature = 10 * time.Millisecond
)

// What a token may say instead of a number of sessions (PKCS#11 v2.40, CK_TOKEN_INFO).
const (
	effectivelyInfinite = 0
	notKnown            = ^uint(0)
)

// sessionLimit returns how many sessions may sign at once. token is how many the token allows in
// all. One of them is the login session.
func sessionLimit(wanted int, token uint) int {
	if token == effectivelyInfinite || token == notKnown {
		return wanted
	}
	return max(1, min(wanted, int(min(token, 1<<16))-1))
}

// growthLimit returns up to how many sessions may sign at once on a token that allows so many in
// all, and has so many open, if the first may be that many. With the login session they are at most
// half of those that are free. There is no growth if the token does not say how many it allows.
func growthLimit(first int, token, open uint) int {
	switch {
	case token == notKnown:
		return first
	case token == effectivelyInfinite:
		return mostSessions
	case open == notKnown:
		open = 0
	}
	free := min(token-min(open, token), 1<<16)
	return max(first, min(mostSessions, int(free/2)-1))
}

// A pool keeps the sessions of a connection, last in, first out, so that no more are open than are
// needed.
type pool struct {
	conn    *Connection
	permits chan struct{} // one for each session in use, and one for each withheld one
	freed   chan struct{} // a session came back while somebody waited for one

	mu       sync.Mutex
	idle     []pkcs11.SessionHandle
	open     map[pkcs11.SessionHandle]bool // sessions of the pool, idle or in use
	withheld int                           // sessions that are used only if signatures are slow
	took     time.Duration                 // a signature, lately: a moving average
}

// newPool returns a pool of first sessions, which may grow to most.
func newPool(conn *Connection, first, most int) *pool {
	p := &pool{conn: conn, permits: make(chan struct{}, most), freed: make(chan struct{}, 1),
		open: map[pkcs11.SessionHandle]bool{}, withheld: most - first}
	for range p.withheld {
		p.permits <- struct{}{}
	}
	return p
}

// sessionRetry is the wait before a token that had no free session is asked again. Other
// applications may hold them, and nothing tells when they close one.
const sessionRetry = 100 * time.Millisecond

// acquire returns a session. It waits for one until the context ends, and for the timeout at most.
func (p *pool) acquire(ctx context.Context, timeout time.Duration) (pkcs11.SessionHandle, error) {
	if ctx.Err() != nil {
		return 0, p.busy(ctx)
	}
	permitted := p.permit()
	if permitted {
		if session, ok := p.pop(); ok {
			return session, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if !permitted {
		select {
		case p.permits <- struct{}{}:
		case <-ctx.Done():
			return 0, p.busy(ctx)
		}
	}
	return p.wait(ctx)
}

// permit reports whether another session may be used now. If all are in use and signatures are
// slow, it takes a withheld one.
func (p *pool) permit() bool {
	select {
	case p.permits <- struct{}{}:
		return true
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.withheld == 0 || p.took < slowSignature {
		return false
	}
	p.withheld-- // its permit is that of the caller now
	return true
}

// wait waits for an idle session until the context ends, and opens one if there is none. The caller
// has a permit, which wait returns if it fails.
func (p *pool) wait(ctx context.Context) (pkcs11.SessionHandle, error) {
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
		"see PKCS11_MAX_SESSIONS): %v", p.counts().Most, context.Cause(ctx))
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

// release returns a healthy session, whose signature took that long.
func (p *pool) release(session pkcs11.SessionHandle, took time.Duration) {
	p.mu.Lock()
	p.idle = append(p.idle, session)
	p.took += (took - p.took) / 8
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
	n := Sessions{Open: len(p.open), InUse: len(p.open) - len(p.idle),
		Most: cap(p.permits) - p.withheld}
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
