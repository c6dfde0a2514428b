package tokens_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"k8s.io/apimachinery/pkg/util/wait"

	"hsm-signer/hsm"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/tokens"
)

const (
	retryEvery = 25 * time.Millisecond
	retryFor   = 5 * time.Minute // what does not come at all ends the test
	callers    = 8
)

// A trial is the key "ca" on one token behind a shim, on which faults occur one after another. The
// token has the key "other" too.
type trial struct {
	t       *testing.T
	token   *tokens.Token
	maker   string // what the module says of itself, which is asked for
	shim    *pkcs11shim.Shim
	public  crypto.PublicKey
	results *table

	timeout time.Duration
	pin     *pinSource
	key     atomic.Pointer[hsm.Key]

	restarted bool // to end the fault that is measured
}

func newTrial(t *testing.T, token *tokens.Token, results *table) *trial {
	t.Helper()
	public := generateRSA(t, token, "ca")
	must.Get(token.Generate("rsa-2048", "other", []byte{2}))(t)
	a := newApplication(t, token)
	info := must.Get(a.GetInfo())(t)
	a.unload()
	maker := strings.TrimRight(info.ManufacturerID, " \x00")
	results.describe(token.Name,
		fmt.Sprintf("%s by %s, version %d.%d", strings.TrimRight(info.LibraryDescription, " \x00"),
			maker, info.LibraryVersion.Major, info.LibraryVersion.Minor))
	return &trial{token: token, maker: maker, shim: behind(t, token), public: public,
		results: results, pin: &pinSource{pin: hsm.PIN(token.PIN)}}
}

// A pinSource is a source of a PIN that changes.
type pinSource struct {
	mu  sync.Mutex
	pin hsm.PIN
}

func (s *pinSource) set(pin hsm.PIN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pin = pin
}

func (s *pinSource) get() (hsm.PIN, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pin, nil
}

// open opens the key, as a process does when it starts. The key connects once it can.
func (tr *trial) open() {
	tr.t.Helper()
	c := config(tr.token, "ca")
	c.Module, c.Library.Manufacturer, c.PIN, c.Timeout, c.MaxSessions = tr.shim.Module, tr.maker,
		tr.pin.get, tr.timeout, callers
	key := must.Get(hsm.NewKey(c, tr.public))(tr.t)
	tr.key.Store(key)
	if err := key.Ready(tr.t.Context()); err != nil && !errors.Is(err, hsm.ErrPIN) &&
		!errors.Is(err, hsm.ErrUnavailable) {
		tr.t.Error(err)
	}
}

// restart closes the key and opens another, as a supervisor restarts a process.
func (tr *trial) restart() {
	tr.restarted = true
	tr.key.Load().Close()
	tr.open()
}

// someOf returns all values or, unless every fault occurs on every token, the first two.
func someOf[T any](tr *trial, all []T) []T {
	if tr.token.Name == "softhsm" || os.Getenv(faultsVariable) != "" {
		return all
	}
	return all[:min(2, len(all))]
}

func (tr *trial) calls() pkcs11shim.Calls {
	tr.t.Helper()
	return calls(tr.t, tr.shim)
}

// until waits until what returns true, and returns an error if that takes too long.
func (tr *trial) until(what func() bool) error {
	return wait.PollUntilContextTimeout(tr.t.Context(), retryEvery, retryFor, true,
		func(context.Context) (bool, error) { return what(), nil })
}

// quiet waits until no call hangs, which would keep the module from being finalized, and then sets
// the rules.
func (tr *trial) quiet(rules ...pkcs11shim.Rule) {
	tr.t.Helper()
	must.OK(tr.t, tr.until(func() bool { return tr.key.Load().Stats().Hanging == 0 }))
	must.OK(tr.t, errors.Join(tr.shim.Rules(), tr.shim.Forget(), tr.shim.Rules(rules...)))
}

// inject causes a fault under load and calls heal, which ends the fault once it has taken effect.
// It requires that every rule took effect, and that every request gets its signature.
func (tr *trial) inject(fault string, heal func() error, rules ...pkcs11shim.Rule) outcome {
	tr.t.Helper()
	tr.quiet(rules...)
	o := tr.measure(fault, heal)
	for _, rule := range rules {
		if calls := tr.calls(); len(calls.Under(rule)) == 0 {
			tr.t.Errorf("%s: %q did not come:\n%s", fault, rule, calls)
		}
	}
	return o
}

// injectAtStart is inject for a fault that exists before the key is opened, and that may have no
// effect.
func (tr *trial) injectAtStart(fault string, heal func() error, rules ...pkcs11shim.Rule) outcome {
	tr.t.Helper()
	tr.key.Load().Close()
	tr.quiet(rules...)
	tr.open()
	return tr.measure(fault, heal)
}

// measure runs requests and records their outcome.
func (tr *trial) measure(fault string, heal func() error) outcome {
	tr.t.Helper()
	tr.restarted = false
	o := tr.storm(heal)
	must.OK(tr.t, tr.shim.Rules())
	o.logins, o.restarted = tr.calls().Count(pkcs11shim.Login), tr.restarted
	tr.results.add(fault, tr.token.Name, o)
	if o.lost > 0 || o.wrong > 0 {
		tr.t.Errorf("%s: %+v; the last error: %v\n%s", fault, o, o.last, tr.calls())
	}
	return o
}

// ownFaults returns how many calls failed in addition to the injected faults: some tokens have
// faults of their own under load.
func (tr *trial) ownFaults(made int) int {
	calls := tr.calls()
	return len(calls) - len(calls.With(pkcs11.CKR_OK)) - made
}

// An outcome is the outcome of the requests during a fault.
type outcome struct {
	requests, attempts, logins, lost, wrong int // attempts of the slowest
	restarted                               bool
	last                                    error
}

// storm runs concurrent requests, each retried until it is signed, as the controller does. Without
// heal each caller makes one request. Otherwise the callers continue until heal has returned, and
// make one more.
func (tr *trial) storm(heal func() error) (o outcome) {
	ctx, cancel := context.WithTimeout(tr.t.Context(), retryFor)
	defer cancel()
	over := make(chan struct{})
	var group sync.WaitGroup
	var mu sync.Mutex
	for i := range callers {
		group.Go(func() {
			for last := false; !last; {
				select {
				case <-over:
					last = true
				default:
					last = heal == nil
				}
				one := tr.request(ctx, i)
				mu.Lock()
				o = o.and(one)
				mu.Unlock()
				last = last || one.lost > 0
			}
		})
	}
	if heal != nil {
		if err := heal(); err != nil {
			tr.t.Error(err)
		}
	}
	close(over)
	group.Wait()
	return o
}

func (o outcome) and(one outcome) outcome {
	return outcome{
		requests: o.requests + one.requests, attempts: max(o.attempts, one.attempts),
		lost: o.lost + one.lost, wrong: o.wrong + one.wrong, last: errors.Join(o.last, one.last),
	}
}

// request retries one signature until it succeeds.
func (tr *trial) request(ctx context.Context, i int) outcome {
	o := outcome{requests: 1}
	digest := sha256.Sum256(fmt.Appendf(nil, "request %d", i))
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Steps: 5, Cap: time.Second}
	err := backoff.DelayFunc().Until(ctx, true, true, func(ctx context.Context) (bool, error) {
		o.attempts++
		signature, err := tr.key.Load().Signer(ctx).Sign(nil, digest[:], crypto.SHA256)
		if err != nil {
			o.last = err
			return false, nil
		}
		if !verifies(tr.public, digest[:], signature) {
			o.wrong++
		}
		return true, nil
	})
	if err != nil {
		o.lost++
	}
	return o
}

func verifies(public crypto.PublicKey, digest, signature []byte) bool {
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(public, digest, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(public, crypto.SHA256, digest, signature) == nil
	}
	return false
}

// changePIN changes the PIN in a session of its own. Most modules exist once in a process, and the
// product has initialized this one and logged in. p11-kit's modules have a separate state for each
// user of the library.
func changePIN(t *testing.T, token *tokens.Token, fresh string) {
	t.Helper()
	module := pkcs11.New(token.Module)
	defer module.Destroy()
	if err := module.Initialize(); code(t, err) == pkcs11.CKR_OK {
		defer func() { must.OK(t, module.Finalize()) }()
	}
	slots := must.Get(module.GetSlotList(true))(t)
	for _, slot := range slots {
		info := must.Get(module.GetTokenInfo(slot))(t)
		if strings.TrimRight(info.Label, " \x00") != token.Label {
			continue
		}
		session, err := module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		must.OK(t, err)
		if err := module.Login(session, pkcs11.CKU_USER, token.PIN); code(t,
			err) != pkcs11.CKR_USER_ALREADY_LOGGED_IN {
			must.OK(t, err)
		}
		must.OK(t, module.SetPIN(session, token.PIN, fresh))
		must.OK(t, module.CloseSession(session))
	}
}
