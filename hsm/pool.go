package hsm

import (
	"context"
	"sync"

	"github.com/miekg/pkcs11"
)

// defaultSessions is how many sessions are used at once where nothing else is
// said and the token allows it.
const defaultSessions = 16

// sessionLimit returns how many sessions may sign at once. The token says how
// many it allows in all; 0 is no limit and all ones is unknown
// (PKCS#11, CK_TOKEN_INFO). One of them is the keeper's.
func sessionLimit(wanted int, token uint) int {
	if wanted <= 0 {
		wanted = defaultSessions
	}
	const effectivelyInfinite, unavailable = 0, ^uint(0)
	if token == effectivelyInfinite || token == unavailable {
		return wanted
	}
	return max(1, min(wanted, int(min(token, 1<<16))-1))
}

// A pool keeps the sessions of a connection, last in, first out, so that few are
// open where few are needed.
type pool struct {
	conn    *connection
	permits chan struct{} // one for each session that may be in use

	mu   sync.Mutex
	idle []pkcs11.SessionHandle
}

func newPool(conn *connection, limit int) *pool {
	return &pool{conn: conn, permits: make(chan struct{}, limit)}
}

// acquire waits for a session until the context ends.
func (p *pool) acquire(ctx context.Context) (pkcs11.SessionHandle, error) {
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	select {
	case p.permits <- struct{}{}:
	case <-ctx.Done():
		return 0, faultf(ErrUnavailable, "all %d PKCS#11 sessions are busy: %v", cap(p.permits), ctx.Err())
	}
	if session, ok := p.pop(); ok {
		return session, nil
	}
	session, err := p.conn.openSession()
	if err == nil {
		return session, nil
	}
	<-p.permits
	if is(err, pkcs11.CKR_SESSION_COUNT) { // the connection is as good as it was
		return 0, faultf(ErrUnavailable, "%s", explain(err))
	}
	return 0, err
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

// release gives back a session that is as good as new.
func (p *pool) release(session pkcs11.SessionHandle) {
	p.mu.Lock()
	p.idle = append(p.idle, session)
	p.mu.Unlock()
	<-p.permits
}

// discard closes a session in which a call failed.
func (p *pool) discard(session pkcs11.SessionHandle) {
	_ = p.conn.module.CloseSession(session)
	<-p.permits
}
