//go:build cgo

package hsm

import (
	"context"
	"errors"
	"time"

	"hsm-signer/hsm/ckr"
	"hsm-signer/hsm/cryptoki"
)

// An attempt to connect makes dozens of calls, and the first that hangs ends it. All of them
// together may take openTimeouts times the timeout of one call, and at least leastOpening.
const (
	openTimeouts = 3
	leastOpening = time.Minute
)

// errSlow ends an attempt that takes too long although no call hangs.
var errSlow = errors.New("connecting to the token takes too long, although every call returns: " +
	"raise PKCS11_TIMEOUT; all calls together may take three times as long")

// connect replaces the connection that failed, after the recovery step r. If another caller has
// replaced it meanwhile, connect does nothing. The connection is for all callers, so it does not
// end with the context of the one that makes it.
func (k *Key) connect(ctx context.Context, failed *connection, r ckr.Recovery) error {
	if err := k.lock.lock(ctx); err != nil {
		return k.busy(err)
	}
	defer k.lock.unlock()
	switch {
	case k.closed:
		return faultf(ErrUnavailable, "the key was closed")
	case k.conn != nil && k.conn != failed:
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx),
		max(openTimeouts*k.config.Timeout, leastOpening), errSlow)
	defer cancel()
	k.countLoss()
	if k.disconnect(); r == ckr.NewModule {
		k.user.Unload(ctx, true)
	}
	if err := k.mayTry(); err != nil {
		return err
	}
	if pin, err := k.config.PIN(); err == nil && k.user.MayKnowAnother(pin) {
		k.user.UnloadNow(ctx)
	}
	return k.tried(k.openAgain(ctx))
}

// openAgain opens a connection, and after a fault that may pass it opens another one at once. The
// first failure is free: one fault does not mean that the token is gone. Each further one costs
// credit, so only a token that fails far more often than it signs is given a pause.
func (k *Key) openAgain(ctx context.Context) error {
	for free := true; ; free = false {
		loaded := k.user.Loaded()
		err := k.open(ctx)
		if errors.Is(err, ErrUnavailable) || errors.Is(err, ErrKey) {
			k.user.Unload(ctx, isCKR(err)) // some modules read their keys only in C_Initialize
		}
		if err == nil || !k.mayPass(err, loaded && !k.user.Loaded()) || !free && !k.spend() {
			return err
		}
	}
}

// isCKR reports whether a call into the module has failed, and not what hsm-signer requires.
func isCKR(err error) bool {
	_, is := ckr.RecoveryFrom(err)
	return is
}

// mayPass reports whether another connection may succeed right after this failure; unloaded reports
// whether the module was finalised since. No call may hang, and C_Login must not have failed: a
// second one would be a second try of the PIN.
func (k *Key) mayPass(err error, unloaded bool) bool {
	switch {
	case k.user.Busy() || failedToLogIn(err) || errors.Is(err, ErrPIN):
		return false
	case isCKR(err) || errors.Is(err, cryptoki.ErrEnded):
		return true
	}
	// a module that was initialised again may find the token
	return unloaded && errors.Is(err, ErrUnavailable)
}

// Each signature for a caller earns credit for two failures, up to mostCredit. So hsm-signer pauses
// only for a token that fails more than twice as often as it signs.
const (
	earned     = 2
	mostCredit = 8
)

// earn adds the credit of a signature for a caller.
func (k *Key) earn() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.credit = min(k.credit+earned, mostCredit)
}

// spend uses the credit for one failure, and reports whether there was any.
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
	return errors.As(err, &f) && f.Login
}

// mostUnused is how many connections in a row may be lost before they signed for a caller. Then
// there is a pause before the next: each one costs a login.
const mostUnused = 3

// countLoss counts the connection that is lost, unless it has signed for a caller.
func (k *Key) countLoss() {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.conn == nil:
	case k.conn.served.Load() || time.Since(k.conn.started) > lastRetry:
		k.unused = 0
	case k.credit > 0:
		k.credit--
	default:
		k.unused++
	}
}

// disconnect closes the connection. The caller must hold the lock for writing.
func (k *Key) disconnect() {
	k.good.Store(0)
	k.shown.Store(nil)
	k.user.Lost()
	if k.conn != nil {
		k.conn.Close()
		k.conn = nil
	}
}

// mayTry returns an error if an attempt is too early, or can only do harm: a PIN that the token
// rejected is not tried again. Another PIN is, at once.
func (k *Key) mayTry() error {
	now, err := k.config.PIN()
	k.mu.Lock()
	defer k.mu.Unlock()
	if late := k.counts.FailedLate.Swap(nil); late != nil {
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

// While calls hang, the key gives up after mostHungAttempts attempts in a row, but not within
// leastHanging of the first: a supervisor such as the systemd unit gives up too if it must restart
// a process too often.
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
	if err == nil || k.counts.Hanging.Load() == 0 || cutOff(err) ||
		k.user.Undecided() {
		// A login that may have had a wrong PIN must not be followed by a new process, which would
		// try it again, sooner than by another try here.
		k.hung = 0
	}
	if k.hung >= mostHungAttempts && time.Since(k.hungSince) >= leastHanging {
		err = faultf(ErrHung, "the PKCS#11 module %s hangs: %d attempts to continue without the "+
			"%d calls that have not returned failed; restart hsm-signer, and check the token, "+
			"its daemon and the network to it",
			k.config.Module, k.hung, k.counts.Hanging.Load())
	}
	k.note(err)
	return err
}

// note keeps the result of an attempt and decides when the next may be. The caller must hold mu.
func (k *Key) note(err error) {
	k.last = err
	var f *fault
	if errors.As(err, &f) && f.Refused != nil {
		k.refused = f.Refused
	}
	switch {
	case err == nil && k.unused < mostUnused:
		k.wait, k.loginWait, k.refused = 0, 0, nil
	case err == nil:
		k.refused, k.last = nil, faultf(ErrUnavailable, "%d connections to the token in a row "+
			"failed before they signed anything: waiting before the next", k.unused)
		k.later(&k.wait, firstRetry, lastRetry)
	case f != nil && f.Login && ckr.MayBePIN(f.Cause):
		k.later(&k.loginWait, cryptoki.FirstLoginRetry, cryptoki.LastLoginRetry)
	default:
		k.later(&k.wait, firstRetry, lastRetry)
	}
}

// cutOff reports whether the attempt ended in a call that might have returned: it did not hang.
func cutOff(err error) bool {
	abandoned := (*cryptoki.AbandonedError)(nil)
	return errors.As(err, &abandoned) && abandoned.Early != nil
}

// later postpones the next attempt, each time for twice as long. The caller must hold mu.
func (k *Key) later(wait *time.Duration, first, last time.Duration) {
	*wait = min(max(2**wait, first), last)
	k.notYet = time.Now().Add(*wait)
}

// open makes a connection, and loads the module if necessary. It keeps the connection only if the
// key is the right one and cannot leave.
func (k *Key) open(ctx context.Context) error {
	if err := k.user.Load(ctx); err != nil {
		return err
	}
	conn, err := connect(ctx, k.user)
	if err != nil {
		return err
	}
	if err := k.admit(ctx, conn); err != nil {
		conn.Close()
		return err
	}
	conn.CloseStale()
	k.user.Works()
	k.connections.Add(1)
	k.conn = conn
	k.shown.Store(conn)
	return nil
}

func (k *Key) admit(ctx context.Context, conn *connection) error {
	if err := conn.findKey(ctx, k.config.Key); err != nil {
		return err
	}
	attributes, err := conn.attributes(ctx, conn.key)
	if err != nil {
		return err
	}
	if err := k.judge(attributes); err != nil {
		return err
	}
	if err := conn.requireOneLogin(ctx, k.config.Key); err != nil {
		return err
	}
	if err := k.signTestTwice(ctx, conn, ProbeBegin); !errors.Is(err, ErrUnproven) {
		return err
	}
	return nil // the test signature follows before anything else is signed
}

// judge returns an error if the key could leave its token.
func (k *Key) judge(p KeyAttributes) error {
	if p.Holds() || k.config.AllowExtractable {
		return nil
	}
	return faultf(ErrKey, "the private %s could leave the token: %s. "+
		"Create a key in the token with \"hsm-signer ca create\"; for a trial, set "+
		"ALLOW_EXTRACTABLE_KEY=true", k.config.Key, p)
}
