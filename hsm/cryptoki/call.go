//go:build cgo

package cryptoki

import (
	"context"
	"time"

	"github.com/miekg/pkcs11"
)

// Do makes a call that this package has no method for, and passes the binding of the module to it.
// It waits for the timeout of the configuration at most.
func (m *Module) Do(ctx context.Context, name string, f func(*pkcs11.Ctx) error) error {
	return m.do(ctx, m.config.Timeout, name, func() error { return f(m.ctx) })
}

// do is [call] for a function without a result.
func (m *Module) do(ctx context.Context, timeout time.Duration, name string, f func() error) error {
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
func call[T any](ctx context.Context, m *Module, timeout time.Duration, name string,
	f func() (T, error), late func(T, error)) (T, error) {
	var none T
	if ctx.Err() != nil {
		return none, Faultf(ErrUnavailable, "%s was not called: %v", name, context.Cause(ctx))
	}
	if err := m.begin(name); err != nil {
		return none, err
	}
	// Whether the answer is taken or the call is abandoned is decided once, under the lock.
	answers := make(chan answer[T], 1)
	var taken bool
	go func() {
		value, err := f()
		if m.returned(&taken) {
			if late != nil {
				late(value, err)
			}
			m.endAbandoned(name)
		}
		answers <- answer[T]{value, err}
	}()
	patience := time.NewTimer(timeout)
	defer patience.Stop()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-patience.C:
	case <-ctx.Done():
	}
	if !m.abandon(name, &taken) { // the answer came just in time
		a := <-answers
		return a.value, a.err
	}
	return none, &AbandonedError{name, timeout, context.Cause(ctx)}
}

// callLogin is the only call that must not be in flight twice: each may count as a wrong PIN.
const callLogin = "C_Login"

func (m *Module) begin(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case name == callLogin && !m.loggingIn.IsZero(), m.abandoned >= m.most && m.mayStillCount():
		return Faultf(ErrUnavailable, "the login that timed out at %s has not returned from the "+
			"token: hsm-signer does not log in again while it may still count as a wrong PIN; "+
			"check the token, its daemon and the network to it",
			m.loggingIn.Format(time.TimeOnly))
	case m.abandoned >= m.most:
		return Faultf(ErrHung, "%d calls hang in the PKCS#11 module, which is the limit: "+
			"restart hsm-signer, and check the token, its daemon and the network to it",
			m.abandoned)
	}
	m.inFlight++
	return nil
}

// returned ends a call that has returned, unless it was abandoned, which it reports.
func (m *Module) returned(taken *bool) (abandoned bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if *taken {
		return true
	}
	*taken = true
	m.inFlight--
	return false
}

// abandon abandons a call, unless it has returned, and reports whether it did.
func (m *Module) abandon(name string, taken *bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if *taken {
		return false
	}
	*taken = true
	m.abandoned++
	if name == callLogin {
		m.loggingIn = time.Now()
	}
	m.counts.Abandoned.Add(1)
	m.counts.Hanging.Add(1)
	return true
}

// endAbandoned ends an abandoned call that has returned.
func (m *Module) endAbandoned(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inFlight--
	m.abandoned--
	m.counts.Hanging.Add(-1)
	if name == callLogin {
		m.loggingIn = time.Time{}
	}
}
