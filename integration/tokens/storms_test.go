package tokens_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/tokens"
)

// newSoftHSMTrial returns a trial on SoftHSM. These tests count the calls of the product, so one
// kind of token is enough.
func newSoftHSMTrial(t *testing.T, timeout time.Duration) *trial {
	t.Helper()
	token := fresh(t, tokens.Kind{Name: "softhsm", New: tokens.NewSoftHSM})
	tr := newTrial(t, token, newTable())
	tr.t, tr.timeout = t, timeout
	tr.open()
	t.Cleanup(func() { tr.key.Load().Close() })
	return tr
}

// attemptsWithin returns how many attempts fit into the time since then, if the pauses start at
// half a second and double. It counts one more, whose pause is not over.
func attemptsWithin(start time.Time) int {
	return 2 + int(math.Log2(1+time.Since(start).Seconds()/0.5))
}

// ask runs callers that sign repeatedly until stop returns true.
func (tr *trial) ask(callers int, stop func() bool) {
	tr.t.Helper()
	ctx, cancel := context.WithCancel(tr.t.Context())
	defer cancel()
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			for ctx.Err() == nil {
				tr.request(ctx, i)
			}
		})
	}
	if err := tr.until(stop); err != nil {
		tr.t.Errorf("%v\n%s", err, tr.calls())
	}
	cancel()
	group.Wait()
}

// An attempt opens two connections at once, and at most eight more if the token has signed as often
// before.
const (
	connectionsAtOnce = 2
	mostCredit        = 8
)

// Fifty requests that wait for a dead token cost as much as one: a single probe at a time, with
// growing pauses.
func TestDeadTokenIsProbedOnce(t *testing.T) {
	tr := newSoftHSMTrial(t, patient)
	tr.storm(nil) // earns all the credit there is
	tr.quiet(lost, pkcs11shim.Fail(pkcs11shim.GetTokenInfo, pkcs11.CKR_DEVICE_ERROR))
	start := time.Now()
	tr.ask(50,
		func() bool {
			return tr.calls().Count(pkcs11shim.GetTokenInfo) >= mostCredit+
				4*connectionsAtOnce
		})
	probes, calls := tr.calls().Count(pkcs11shim.GetTokenInfo), tr.calls()
	most := mostCredit + connectionsAtOnce*attemptsWithin(start)
	if probes > most || calls.Count(pkcs11shim.Initialize) > most ||
		calls.Count(pkcs11shim.Login) > 0 {
		t.Errorf("%d probes, want %d at most:\n%s", probes, most, calls)
	}
	t.Logf("50 callers, %s: %d probes, %d calls of PKCS#11",
		time.Since(start).Round(100*time.Millisecond), probes, len(calls))
}

// Fifty requests that wait for a hanging token leave as many hanging calls as one.
func TestHangingTokenIsProbedOnce(t *testing.T) {
	tr := newSoftHSMTrial(t, 500*time.Millisecond)
	tr.quiet(lost, pkcs11shim.Hang(pkcs11shim.GetTokenInfo))
	start := time.Now()
	tr.ask(50, func() bool { return len(tr.calls().Hanging()) >= 3 })
	if calls, most := tr.calls(), attemptsWithin(start); len(calls.Hanging()) > most {
		t.Errorf("%d calls hang, want %d at most:\n%s", len(calls.Hanging()), most, calls)
	}
	must.OK(t, tr.shim.Rules())
	must.OK(t, tr.until(func() bool { return tr.key.Load().Ready(t.Context()) == nil }))
	tr.quiet()
}

// A hanging login is not repeated, and counts as one, however many requests there are.
func TestLoginThatHangsIsMadeOnce(t *testing.T) {
	tr := newSoftHSMTrial(t, 500*time.Millisecond)
	tr.key.Load().Close()
	tr.quiet(pkcs11shim.Hang(pkcs11shim.Login))
	tr.open()
	must.OK(t, tr.until(func() bool {
		return errors.Is(tr.key.Load().Ready(t.Context()), hsm.ErrUnavailable) &&
			tr.calls().Count(pkcs11shim.OpenSession) >= 4
	}))
	if made, counted := tr.calls().Count(pkcs11shim.Login),
		tr.key.Load().Stats().Logins; made != 1 || counted != 1 {
		t.Errorf("C_Login was called %d times, and counted %d times", made, counted)
	}
	must.OK(t, tr.shim.Rules())
	tr.quiet()
}

// A token that accepts connections and then signs nothing is not logged in to repeatedly.
func TestTokenThatSignsForNobodyIsNotLoggedInToAgainAndAgain(t *testing.T) {
	tr := newSoftHSMTrial(t, patient)
	const each = 2 // the test signature calls C_Sign once, and the caller's call fails
	var rules []pkcs11shim.Rule
	for n := uint(1); n < 60*each; n += each {
		rules = append(rules,
			pkcs11shim.Fail(pkcs11shim.Sign, pkcs11.CKR_KEY_HANDLE_INVALID).From(n).Times(1))
	}
	tr.quiet(rules...)
	start, looks := time.Now(), 0
	tr.ask(1, func() bool { looks++; return looks == 40 })
	n, most := tr.calls().Count(pkcs11shim.Login), 3+attemptsWithin(start)
	if n < 3 || n > most {
		t.Errorf("C_Login was called %d times, want %d at most:\n%s", n, most, tr.calls())
	}
	must.OK(t, tr.shim.Rules())
	if o := tr.storm(nil); o.lost > 0 {
		t.Errorf("and then: %+v", o)
	}
}

// A login that fails without a reason may have had a wrong PIN, so it is not repeated soon. One
// that fails because of the device is.
func TestLoginThatFailsWithoutAReason(t *testing.T) {
	tr := newSoftHSMTrial(t, patient)
	for _, c := range []struct {
		code  uint
		again bool
	}{
		{pkcs11.CKR_FUNCTION_FAILED, false}, {pkcs11.CKR_GENERAL_ERROR,
			false}, {pkcs11.CKR_VENDOR_DEFINED + 1, false},
		{pkcs11.CKR_DEVICE_ERROR, true},
	} {
		tr.key.Load().Close()
		tr.quiet(pkcs11shim.Fail(pkcs11shim.Login, c.code))
		tr.open()
		looks := 0
		must.OK(t, tr.until(func() bool {
			if err := tr.key.Load().Ready(t.Context()); !errors.Is(err, hsm.ErrUnavailable) ||
				!strings.Contains(err.Error(), pkcs11shim.CodeName(c.code)) &&
					c.code < pkcs11.CKR_VENDOR_DEFINED {
				t.Errorf("%s: %v", pkcs11shim.CodeName(c.code), err)
			}
			looks++
			return looks == 40
		}))
		if n := tr.calls().Count(pkcs11shim.Login); (n > 1) != c.again {
			t.Errorf("%s: C_Login was called %d times, want it again: %t",
				pkcs11shim.CodeName(c.code), n, c.again)
		}
	}
}

// A login that fails in this way after it was abandoned is not repeated soon either.
func TestLoginThatFailsLateWithoutAReason(t *testing.T) {
	tr := newSoftHSMTrial(t, 500*time.Millisecond)
	tr.key.Load().Close()
	tr.quiet(pkcs11shim.Hang(pkcs11shim.Login),
		pkcs11shim.Fail(pkcs11shim.Login, pkcs11.CKR_GENERAL_ERROR))
	tr.open()
	must.OK(t, tr.shim.Rules(pkcs11shim.Fail(pkcs11shim.Login, pkcs11.CKR_GENERAL_ERROR)))
	says := func() bool {
		err := tr.key.Load().Ready(t.Context())
		return errors.Is(err, hsm.ErrUnavailable) &&
			strings.Contains(err.Error(), "CKR_GENERAL_ERROR")
	}
	must.OK(t, tr.until(says))
	looks := 0
	must.OK(t, tr.until(func() bool { looks++; return !says() || looks == 40 }))
	if n := tr.calls().Count(pkcs11shim.Login); n != 1 || looks != 40 {
		t.Errorf("C_Login was called %d times, and look %d said something else", n, looks)
	}
}

// check warns if it could not verify the PIN.
func TestCheckOfATokenThatIsLoggedInTo(t *testing.T) {
	tr := newSoftHSMTrial(t, patient)
	tr.key.Load().Close()
	tr.quiet(pkcs11shim.Fail(pkcs11shim.Login, pkcs11.CKR_USER_ALREADY_LOGGED_IN))
	c := config(tr.token, "ca")
	c.Module = tr.shim.Module
	for _, step := range hsm.Check(t.Context(), c, tr.public, hsm.CheckOptions{}) {
		if want := step.Name == "login"; step.Warning != want || want &&
			!strings.Contains(step.Detail, "DID NOT CHECK THE PIN") {
			t.Errorf("%s: warns %t: %s", step.Name, step.Warning, step.Detail)
		}
	}
}

// One key must match, even if the module returns one object at a time.
func TestOneKeyMustMatchOfAllThatAreFound(t *testing.T) {
	tr := newSoftHSMTrial(t, patient)
	tr.key.Load().Close()
	must.Get(tr.token.Generate("rsa-2048", "ca", []byte{3}))(t)
	for _, most := range []uint{1, 2, 32} {
		tr.quiet(pkcs11shim.FindAtMost(most))
		c := config(tr.token, "ca")
		c.Module = tr.shim.Module
		err := newKey(t, c, tr.public).Healthy(t.Context())
		if !errors.Is(err, hsm.ErrKey) ||
			!strings.Contains(err.Error(), "the token has more than one private key labelled") ||
			strings.Count(err.Error(), "the key labelled") != 3 {
			t.Errorf("found %d at a time: %v", most, err)
		}
	}
}

// If a slot is named no other slot is asked, since it may be broken. If the named slot is missing
// the error lists those that exist.
func TestNamedSlotAloneIsAsked(t *testing.T) {
	// it has a slot without a token too
	token := fresh(t, tokens.Kind{Name: "softhsm", New: tokens.NewSoftHSM})
	public := generateRSA(t, token, "ca")
	a := newApplication(t, token)
	slot := a.slot
	a.unload()
	s := behind(t, token)
	c := config(token, "ca")
	c.Module, c.Token = s.Module, hsm.TokenID{Slot: &slot}
	must.OK(t, s.Rules(pkcs11shim.Fail(pkcs11shim.GetTokenInfo, pkcs11.CKR_DEVICE_ERROR).From(2)))
	key := newKey(t, c, public)
	must.OK(t, key.Healthy(t.Context()))
	key.Close()
	nowhere := slot + 4711
	c.Token.Slot = &nowhere
	if err := newKey(t, c, public).Healthy(t.Context()); !errors.Is(err, hsm.ErrUnavailable) ||
		!strings.Contains(err.Error(),
			fmt.Sprintf("the module shows tokens in the slots [%d ", slot)) {
		t.Errorf("a missing slot: %v", err)
	}
}

// A PIN that has expired may cause an error as late as at a signature. That is a PIN error too, and
// costs no login.
func TestPINThatExpiresInUse(t *testing.T) {
	tr := newSoftHSMTrial(t, patient)
	tr.quiet(pkcs11shim.Fail(pkcs11shim.SignInit, pkcs11.CKR_PIN_EXPIRED))
	must.OK(t,
		tr.until(func() bool { return errors.Is(tr.key.Load().Ready(t.Context()), hsm.ErrPIN) }))
	must.OK(t, tr.refused())
	if n := tr.calls().Count(pkcs11shim.Login); n != 0 {
		t.Errorf("C_Login was called %d times:\n%s", n, tr.calls())
	}
	must.OK(t, tr.shim.Rules())
	requireSignatures(t, tr.key.Load(), tr.public)
}

// Whatever fails during a signature, the error has the name of the code, its meaning and the
// remedy.
func TestErrorsTellTheWay(t *testing.T) {
	tr := newSoftHSMTrial(t, patient)
	for _, function := range []string{
		pkcs11shim.Initialize, pkcs11shim.GetInfo, pkcs11shim.GetSlotList, pkcs11shim.GetTokenInfo,
		pkcs11shim.OpenSession, pkcs11shim.Login, pkcs11shim.FindObjectsInit,
		pkcs11shim.FindObjects, pkcs11shim.GetAttributeValue, pkcs11shim.SignInit, pkcs11shim.Sign,
	} {
		for code, want := range map[uint]string{
			pkcs11.CKR_HOST_MEMORY: " (CKR_HOST_MEMORY): raise the memory limit of " +
				"the process",
			pkcs11.CKR_VENDOR_DEFINED + 1:  " (code 0x80000001): look it up in the vendor's manual",
			pkcs11.CKR_WRAPPED_KEY_INVALID: " (CKR_WRAPPED_KEY_INVALID): ",
		} {
			tr.key.Load().Close()
			tr.quiet(pkcs11shim.Fail(function, code))
			tr.open()
			if err := tr.key.Load().Ready(t.Context()); err == nil ||
				!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "pkcs11: ") {
				t.Errorf("%s answers %#x: %v; want %q", function, code, err, want)
			}
		}
	}
}
