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
	m.counts.Abandoned.Add(1)
	m.counts.Hanging.Add(1)
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

func (m *Module) end(name string, abandoned bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inFlight--
	if abandoned {
		m.abandoned--
		m.counts.Hanging.Add(-1)
		if name == callLogin {
			m.loggingIn = time.Time{}
		}
	}
}
