package hsm

import (
	"context"
	"errors"
	"time"

	"github.com/miekg/pkcs11"
)

// All calls of one attempt to connect may take so many timeouts of one call, but not less than that long: there are
// dozens of them, each may take its time, and the first that hangs ends the attempt anyway.
const (
	openTimeouts = 3
	leastOpening = time.Minute
)

// errSlow is why an attempt ends in which no call hung.
var errSlow = errors.New("connecting to the token takes longer than three times PKCS11_TIMEOUT, although each call returns: raise PKCS11_TIMEOUT")

// connect makes a new connection instead of the failed one, and goes back as far as the
// rung says. When another caller has made one meanwhile, there is nothing to do. It is made for
// all, so it does not end with the context of the caller that happens to make it.
func (k *Key) connect(ctx context.Context, failed *connection, r rung) error {
	if err := k.gate.lock(ctx); err != nil {
		return k.busy(err)
	}
	defer k.gate.unlock()
	switch {
	case k.closed:
		return faultf(ErrUnavailable, "the key was closed")
	case k.conn != nil && k.conn != failed:
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), max(openTimeouts*k.config.Timeout, leastOpening), errSlow)
	defer cancel()
	k.noteLoss()
	if k.disconnect(); r == newModule {
		k.unload(ctx)
	}
	if err := k.mayTry(); err != nil {
		return err
	}
	if pin, err := k.config.PIN(); err == nil && k.library != nil && k.library.mayKnowAnother(pin) {
		k.unload(ctx)
	}
	return k.tried(k.openAgain(ctx))
}

// openAgain opens a connection, and opens another one at once after a fault that may pass. The
// first failure is free, since one fault does not mean that the token is gone. Each further one
// costs credit, so there is a wait only for a token that fails far more often than it signs.
func (k *Key) openAgain(ctx context.Context) error {
	for free := true; ; free = false {
		loaded := k.library != nil
		err := k.open(ctx)
		if errors.Is(err, ErrUnavailable) || errors.Is(err, ErrKey) {
			k.unload(ctx) // some modules list their keys in C_Initialize only
		}
		if err == nil || !k.mayPass(err, loaded) || !free && !k.spend() {
			return err
		}
	}
}

// mayPass reports whether another connection may succeed right after this failure. No call may be
// in flight, and C_Login must not have failed: a second one would be a second try of the PIN.
func (k *Key) mayPass(err error, loaded bool) bool {
	var ckr pkcs11.Error
	switch {
	case k.library != nil || failedToLogIn(err) || errors.Is(err, ErrPIN):
		return false
	case errors.As(err, &ckr):
		return true
	}
	return loaded && errors.Is(err, ErrUnavailable) // a module that was initialised again may find the token
}

// A signature for a caller pays for two later failures, and mostCredit is how many failures may be
// paid for. So hsm-signer waits only for a token that fails more than twice as often as it signs.
const (
	earned     = 2
	mostCredit = 8
)

// earn notes a signature for a caller.
func (k *Key) earn() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.credit = min(k.credit+earned, mostCredit)
}

// spend pays for one failure and reports whether there was any.
func (k *Key) spend() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.credit == 0 {
		return false
	}
	k.credit--
	return true
}

// failedToLogIn reports whether C_Login failed: a second one would be a second try.
func failedToLogIn(err error) bool {
	var f *fault
	return errors.As(err, &f) && f.login
}

// mostInVain is how many connections in a row may be lost before they have signed for anybody, until one waits
// before the next: each costs a login.
const mostInVain = 3

// noteLoss counts the connection that is lost, if it was of use to nobody.
func (k *Key) noteLoss() {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.conn == nil:
	case k.conn.served.Load() || time.Since(k.conn.began) > lastRetry:
		k.inVain = 0
	case k.credit > 0:
		k.credit--
	default:
		k.inVain++
	}
}

// disconnect closes the connection. The caller holds the lock for writing.
func (k *Key) disconnect() {
	k.good.Store(0)
	k.pool.Store(nil)
	if k.conn != nil {
		k.conn.close()
		k.conn = nil
	}
}

// unload finalises the module, if no call is in flight in it.
func (k *Key) unload(ctx context.Context) {
	if k.library != nil && k.library.close(ctx) {
		k.library = nil
	}
}

// mayTry refuses an attempt that is too early, or one that can only do harm: a PIN that the token
// refused is not tried again. Another PIN is, at once.
func (k *Key) mayTry() error {
	now, err := k.config.PIN()
	k.mu.Lock()
	defer k.mu.Unlock()
	if late := k.counts.failedLate.Swap(nil); late != nil {
		k.note(late)
	}
	if k.refused != nil {
		before, _ := k.refused()
		switch {
		case err != nil || now == before:
			return k.last
		case errors.Is(k.last, ErrPIN):
			return nil
		}
	}
	if k.last != nil && time.Now().Before(k.notYet) {
		return k.last
	}
	return nil
}

// One gives up after so many attempts in a row to connect while calls hang, but not sooner than that long after the first: a
// supervisor such as deploy/systemd's unit gives up too, when it has to start a process too often.
const (
	mostHungAttempts = 5
	leastHanging     = time.Minute
)

// tried records an attempt, and gives up if the module hangs permanently.
func (k *Key) tried(err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.hung++; k.hung == 1 {
		k.hungSince = time.Now()
	}
	if err == nil || k.counts.hanging.Load() == 0 || cutOff(err) || k.library != nil && k.library.undecided() {
		k.hung = 0 // a login that may have been one with a wrong PIN does not end the process sooner than the next login
	}
	if k.hung >= mostHungAttempts && time.Since(k.hungSince) >= leastHanging {
		err = faultf(ErrHung, "the PKCS#11 module %s hangs: %d attempts to connect without its %d hanging calls failed. Restart this process, and check the token, its daemon and the network to it", k.config.Module, k.hung, k.counts.hanging.Load())
	}
	k.note(err)
	return err
}

// note records the result of an attempt and when the next one may start. The caller must hold mu.
func (k *Key) note(err error) {
	k.last = err
	var f *fault
	if errors.As(err, &f) && f.refused != nil {
		k.refused = f.refused
	}
	switch {
	case err == nil && k.inVain < mostInVain:
		k.wait, k.loginWait, k.refused = 0, 0, nil
	case err == nil:
		k.refused, k.last = nil, faultf(ErrUnavailable, "several connections in a row failed before they had signed anything; waiting before the next attempt")
		k.later(&k.wait, firstRetry, lastRetry)
	case f != nil && f.login && mayMeanPIN(f.cause):
		k.later(&k.loginWait, firstLoginRetry, lastLoginRetry)
	default:
		k.later(&k.wait, firstRetry, lastRetry)
	}
}

// cutOff reports whether the attempt ended in a call that might have come back: it did not hang.
func cutOff(err error) bool {
	abandoned := (*abandonedError)(nil)
	return errors.As(err, &abandoned) && abandoned.early != nil
}

// later puts the next attempt off, each time for twice as long as the wait was before. The caller holds the mutex.
func (k *Key) later(wait *time.Duration, first, last time.Duration) {
	*wait = min(max(2**wait, first), last)
	k.notYet = time.Now().Add(*wait)
}

// open makes a connection on the library, which is loaded if need be. It lives only when it holds
// the right key and that key cannot leave.
func (k *Key) open(ctx context.Context) (err error) {
	if k.library != nil && !k.library.ready {
		if k.unload(ctx); k.library != nil {
			return faultf(ErrUnavailable, "dlopen, C_Initialize or C_Finalize has not returned from the PKCS#11 module %s yet", k.config.Module)
		}
	}
	if k.library == nil {
		if k.library, err = load(ctx, k.config, &k.counts); err != nil {
			return err
		}
	}
	conn, err := connect(ctx, k.library, k.config)
	if err != nil {
		return err
	}
	if err := k.admit(ctx, conn); err != nil {
		conn.close()
		return err
	}
	conn.closeStale()
	k.counts.connections.Add(1)
	k.conn = conn
	k.pool.Store(conn.sessions)
	return nil
}

func (k *Key) admit(ctx context.Context, conn *connection) error {
	if err := conn.findKey(ctx, k.config.Key); err != nil {
		return err
	}
	proof, err := conn.prove(ctx, conn.key)
	if err != nil {
		return err
	}
	if err := k.judge(proof); err != nil {
		return err
	}
	if err := conn.requireOneLogin(ctx, k.config.Key); err != nil {
		return err
	}
	if err := k.signTestTwice(ctx, conn, ProbeBegin); !errors.Is(err, ErrUnproven) {
		return err
	}
	return nil // it is made when it may be, before anything else is signed
}

// judge refuses a key that could leave its token.
func (k *Key) judge(p Proof) error {
	if p.Holds() || k.config.AllowExtractable {
		return nil
	}
	return faultf(ErrKey, "the private %s could leave the token: %s. Make a key in the token with \"hsm-signer ca create\"; for a trial, set ALLOW_EXTRACTABLE_KEY=true", k.config.Key, p)
}
