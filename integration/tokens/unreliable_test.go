package tokens_test

import (
	"crypto"
	"errors"
	"testing"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
)

// passing returns rules that make one call fail, of any function. Later calls succeed.
func passing() []pkcs11shim.Rule {
	var rules []pkcs11shim.Rule
	for _, code := range []uint{
		pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_SESSION_HANDLE_INVALID,
		pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_KEY_HANDLE_INVALID,
	} {
		rules = append(rules, pkcs11shim.Fail(pkcs11shim.Any, code).Times(1))
	}
	return append(rules, pkcs11shim.CloseSessions(pkcs11shim.Any))
}

// A token was unavailable, and the first call after each pause fails. The product finds the token
// again: one fault does not end an attempt to connect.
func TestOneFaultDoesNotEndAnAttempt(t *testing.T) {
	tr := newSoftHSMTrial(t, patient)
	sign := func() error {
		_, err := tr.key.Load().Signer(t.Context()).Sign(nil, make([]byte, crypto.SHA256.Size()),
			crypto.SHA256)
		return err
	}
	for _, rule := range passing()[1:] {
		tr.quiet(pkcs11shim.Fail(pkcs11shim.Any, pkcs11.CKR_DEVICE_REMOVED))
		must.OK(t, tr.until(func() bool { return errors.Is(sign(), hsm.ErrUnavailable) }))
		must.OK(t, errors.Join(tr.shim.Forget(), tr.shim.Rules(rule)))
		signs := func() bool {
			err := sign()
			// the fault has come, and the next attempt meets another
			if err != nil && len(tr.calls()) > 0 {
				must.OK(t, errors.Join(tr.shim.Forget(), tr.shim.Rules(rule)))
			}
			return err == nil
		}
		if err := tr.until(signs); err != nil {
			t.Errorf("%s: %v", rule, err)
		}
	}
}

// mostTries bounds how often a request is tried while one call of forty fails. One attempt takes
// six faults. A connection takes a dozen calls, so occasionally a request meets six in a row.
const mostTries = 3

// If one call of forty fails no request is lost, and nearly all succeed with an immediate retry.
// Faults of C_Login have their own tests.
func TestUnreliableToken(t *testing.T) {
	tr := newSoftHSMTrial(t, patient)
	const every, rounds = 40, 8
	var rules []pkcs11shim.Rule
	for range rounds {
		for _, rule := range passing() {
			rules = append(rules, rule.From(uint(every*(len(rules)+1))))
		}
	}
	tr.quiet(rules...)
	fell := func() int {
		return len(tr.calls()) - len(tr.calls().With(pkcs11.CKR_OK))
	}
	o := tr.storm(func() error {
		return tr.until(func() bool { return len(tr.calls()) > every*len(rules) })
	})
	stats := tr.key.Load().Stats()
	t.Logf("%d requests, %d faults, %d connections, %d logins", o.requests, fell(),
		stats.Connections, stats.Logins)
	failedLogins := len(tr.calls().Of(pkcs11shim.Login)) - len(tr.calls().Of(pkcs11shim.Login).
		With(pkcs11.CKR_OK))
	if o.lost > 0 || o.wrong > 0 || o.attempts > mostTries && failedLogins == 0 {
		t.Errorf("%d failed logins, %+v; the last error: %v", failedLogins, o, o.last)
	}
}

// A login that may have failed because of the PIN is tried once, however often the token has signed
// before.
func TestCreditDoesNotPayForLogins(t *testing.T) {
	tr := newSoftHSMTrial(t, patient)
	for _, code := range []uint{pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_PIN_INCORRECT,
		pkcs11.CKR_PIN_LOCKED} {
		tr.quiet()
		for range 4 {
			tr.storm(nil)
		}
		tr.quiet(lost, pkcs11shim.Fail(pkcs11shim.Login, code))
		looks := 0
		tr.ask(callers, func() bool { looks++; return looks == 40 })
		if n := tr.calls().Count(pkcs11shim.Login); n != 1 {
			t.Errorf("%s: C_Login was called %d times, want 1:\n%s", pkcs11shim.CodeName(code), n,
				tr.calls())
		}
		must.OK(t, tr.shim.Rules())
		tr.restart()
	}
}
