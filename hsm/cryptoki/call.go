//go:build cgo

package cryptoki

import (
	"context"
	"fmt"
	"time"
)

// A caller makes calls into a module for one of its users.
type caller struct {
	user   *User
	module *module
}

// do is [call] for a function without a result.
func (by caller) do(ctx context.Context, timeout time.Duration, name string, f func() error) error {
	_, err := call(ctx, by, timeout, name, func() (struct{}, error) { return struct{}{}, f() }, nil)
	return err
}

// An answer is the result of a call.
type answer[T any] struct {
	value T
	err   error
}

// call makes one call into the module and waits for its answer until the timeout or until the
// context ends. An answer after that is passed to late.
func call[T any](ctx context.Context, by caller, timeout time.Duration, name string,
	f func() (T, error), late func(T, error)) (T, error) {
	var none T
	if ctx.Err() != nil {
		return none, Faultf(ErrUnavailable, "%s was not called: %v", name, context.Cause(ctx))
	}
	if err := by.begin(name); err != nil {
		return none, err
	}
	ended := by.abandonedLogin(name)
	// Whether the answer is taken or the call is abandoned is decided once, under the lock.
	answers := make(chan answer[T], 1)
	var taken bool
	go func() {
		value, err := f()
		if by.returned(&taken) {
			if late != nil {
				late(value, err)
			}
			ended(time.Time{})
			by.endAbandoned()
		}
		answers <- answer[T]{value, err}
	}()
	patience := time.NewTimer(timeout)
	defer patience.Stop()
	select {
	case a := <-answers:
		by.user.answered(a.err)
		return a.value, a.err
	case <-patience.C:
	case <-ctx.Done():
	}
	if !by.abandon(&taken, ended) { // the answer came just in time
		a := <-answers
		return a.value, a.err
	}
	return none, &AbandonedError{name, timeout, context.Cause(ctx)}
}

// Calls that differ from the others: a login must not be in flight twice, since each may count as a
// wrong PIN, and C_Finalize is the last call.
const (
	callLogin    = "C_Login"
	callFinalize = "C_Finalize"
)

// abandonedLogin returns a function that notes since when a login has been abandoned, and for other
// calls does nothing.
func (by caller) abandonedLogin(name string) func(since time.Time) {
	if name != callLogin {
		return func(time.Time) {}
	}
	return by.user.logins.Load().hang // those to the token of this call, and not of a later one
}

func (by caller) begin(name string) error {
	if name == callLogin {
		if since := by.user.logins.Load().hangingSince(); !since.IsZero() {
			return undecided(since)
		}
	}
	m := by.module
	m.mu.Lock()
	defer m.mu.Unlock()
	switch hangs := by.user.abandoned; {
	case m.ended && name != callFinalize:
		return &Fault{Kind: ErrUnavailable, Cause: ErrEnded,
			Text: fmt.Sprintf("%s was not called: %v", name, ErrEnded)}
	case hangs >= by.user.most:
		if since := by.user.logins.Load().hangingSince(); by.user.logins.Load().undecided() {
			return undecided(since)
		}
		return Faultf(ErrHung, "%d calls hang in the PKCS#11 module, which is the limit: "+
			"restart hsm-signer, and check the token, its daemon and the network to it", hangs)
	}
	m.inFlight++
	return nil
}

// undecided is the error while an abandoned login may still count as a wrong PIN.
func undecided(since time.Time) error {
	return Faultf(ErrUnavailable, "the login that timed out at %s has not returned from the "+
		"token: hsm-signer does not log in again while it may still count as a wrong PIN; "+
		"check the token, its daemon and the network to it", since.Format(time.TimeOnly))
}

// returned ends a call that has returned, unless it was abandoned, which it reports.
func (by caller) returned(taken *bool) (abandoned bool) {
	m := by.module
	m.mu.Lock()
	defer m.mu.Unlock()
	if *taken {
		return true
	}
	*taken = true
	m.leave()
	return false
}

// leave ends a call. The caller must hold mu.
func (m *module) leave() {
	if m.inFlight--; m.inFlight == 0 && m.drained != nil {
		close(m.drained)
		m.drained = nil
	}
}

// abandon abandons a call, unless it has returned, and reports whether it did.
func (by caller) abandon(taken *bool, note func(since time.Time)) bool {
	m := by.module
	m.mu.Lock()
	defer m.mu.Unlock()
	if *taken {
		return false
	}
	*taken = true
	m.abandoned++
	by.user.abandoned++
	note(time.Now())
	by.user.counts.Abandoned.Add(1)
	by.user.counts.Hanging.Add(1)
	return true
}

// endAbandoned ends an abandoned call that has returned.
func (by caller) endAbandoned() {
	m := by.module
	m.mu.Lock()
	defer m.mu.Unlock()
	m.abandoned--
	by.user.abandoned--
	by.user.counts.Hanging.Add(-1)
	m.leave()
}
