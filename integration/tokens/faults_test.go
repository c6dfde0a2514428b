package tokens_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/testenv"
	"hsm-signer/integration/tokens"
)

// faultsVariable names the file for the table of faults. If it is set every fault occurs on every
// token. Otherwise some faults occur on SoftHSM alone.
const faultsVariable = "FAULTS"

// patient is the timeout of calls if no call hangs permanently. It is longer than any call takes on
// a busy machine. Only a call that must be abandoned needs a short timeout.
const patient = time.Minute

// faults occur on each token in this order.
var faults = []struct {
	name    string
	timeout time.Duration
	inject  func(*trial)
}{
	{"ladder", patient, everyRung},
	{"return", patient, everyCallOfTheWayBack},
	{"lasting", patient, lasting},
	{"key", patient, keySwapped},
	{"away", patient, keyAway},
	{"hang", 500 * time.Millisecond, hangOfEveryCall},
	{"slow", time.Second, slow},
	{"sessions", patient, fewSessions},
	{"daemon", 2 * time.Second, daemonGone},
	{"files", patient, filesGone},
	{"pin", patient, pinRefused},
	{"late", 2 * time.Second, pinRefusedLate},
}

// After every fault the key signs again by itself. No request is lost, and no signature of another
// key is returned. If an administrator must help first, the token is not asked repeatedly until
// then.
//
// Modules find their tokens through environment variables, so each kind of token has its own
// process.
func TestFaults(t *testing.T) {
	if kind := os.Getenv(kindVariable); kind != "" {
		faultsOf(t, kind)
		return
	}
	results := map[string]*table{}
	for _, kind := range tokens.All() {
		results[kind.Name] = newTable()
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			inProcess(t, kind.Name, results[kind.Name])
		})
	}
	t.Cleanup(func() {
		all := newTable()
		for _, kind := range tokens.All() {
			all.merge(results[kind.Name])
		}
		t.Logf("%s", all)
		if file := os.Getenv(faultsVariable); file != "" && !t.Failed() {
			must.OK(t, os.WriteFile(file, []byte(all.markdown()), 0o644))
		}
	})
}

// The variables of a child process of TestFaults: the kind of token, and the file for its table.
const (
	kindVariable  = "TOKENS_TEST_KIND"
	tableVariable = "TOKENS_TEST_TABLE"
)

// inProcess runs faultsOf in its own process, and reads the results.
func inProcess(t *testing.T, kind string, results *table) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "table.json")
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFaults$", "-test.v",
		"-test.timeout=30m")
	child.Env = append(os.Environ(), kindVariable+"="+kind, tableVariable+"="+file)
	var out bytes.Buffer
	child.Stdout, child.Stderr = &out, &out
	ended := must.Get(testenv.Spawn(child))(t)
	if <-ended; !child.ProcessState.Success() {
		t.Fatalf("the process of %s: %s:\n%s", kind, child.ProcessState, &out)
	}
	must.OK(t, json.Unmarshal(must.Get(os.ReadFile(file))(t), results))
}

// faultsOf causes every fault on a token of this kind, and writes the table.
func faultsOf(t *testing.T, name string) {
	kinds := tokens.All()
	i := slices.IndexFunc(kinds, func(k tokens.Kind) bool { return k.Name == name })
	if i < 0 {
		t.Fatalf("there is no kind of token %q", name)
	}
	token, results := fresh(t, kinds[i]), newTable()
	tr := newTrial(t, token, results)
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			if tr.t, tr.timeout = t, fault.timeout; token.HasDaemon() {
				// Each call goes to another process, which the system must schedule.
				tr.timeout = max(tr.timeout, 5*time.Second)
			}
			tr.open()
			defer func() { tr.key.Load().Close() }()
			fault.inject(tr)
		})
	}
	text, err := json.Marshal(results)
	must.OK(t, errors.Join(err, os.WriteFile(os.Getenv(tableVariable), text, 0o600)))
}

// ladder has return codes of every recovery step, one of them unknown to the standard, with the
// cost of recovery: attempts, and calls of C_Login and C_Initialize.
var ladder = []struct {
	attempts, logins, initialised int
	codes                         []uint
}{
	{2, 0, 0,
		[]uint{pkcs11.CKR_DATA_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID,
			pkcs11.CKR_FUNCTION_NOT_SUPPORTED}},
	{1, 0, 0, []uint{
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED,
		pkcs11.CKR_FUNCTION_CANCELED, pkcs11.CKR_BUFFER_TOO_SMALL,
		pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_HOST_MEMORY,
		pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED,
		pkcs11.CKR_VENDOR_DEFINED + 1,
	}},
	{1, 1, 0, []uint{
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_COUNT,
		pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID,
		pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_SIZE_RANGE,
		pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_MECHANISM_INVALID,
		pkcs11.CKR_DATA_LEN_RANGE,
	}},
	{1, 1, 1, []uint{
		pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
	}},
}

// places are the places in which a code may occur.
var places = []struct {
	name string
	rule func(code uint) pkcs11shim.Rule
}{
	{"before C_SignInit",
		func(code uint) pkcs11shim.Rule { return pkcs11shim.Fail(pkcs11shim.SignInit, code) }},
	{"after C_SignInit",
		func(code uint) pkcs11shim.Rule { return pkcs11shim.FailAfter(pkcs11shim.SignInit, code) }},
	{"before C_Sign",
		func(code uint) pkcs11shim.Rule { return pkcs11shim.Fail(pkcs11shim.Sign, code) }},
	{"after C_Sign",
		func(code uint) pkcs11shim.Rule { return pkcs11shim.FailAfter(pkcs11shim.Sign, code) }},
}

// everyRung injects each code once. No request fails, except for codes that mean that the token
// rejects the data: then the next sync succeeds.
func everyRung(tr *trial) {
	for _, rung := range ladder {
		for _, code := range someOf(tr, rung.codes) {
			for _, place := range places {
				fault := pkcs11shim.CodeName(code) + " " + place.name
				o := tr.inject(fault, nil, place.rule(code).Times(1))
				n := tr.calls().Count(pkcs11shim.Initialize)
				if tr.ownFaults(1) == 0 &&
					(o.attempts != rung.attempts || o.logins != rung.logins ||
						n != rung.initialised) {
					tr.t.Errorf("%s: %d attempts, %d calls of C_Login and %d of C_Initialize; "+
						"want %d, %d and %d; the last error: %v",
						fault, o.attempts, o.logins, n, rung.attempts, rung.logins,
						rung.initialised, o.last)
				}
			}
		}
	}
}

// wayBack are the calls that reconnect after a lost connection.
var wayBack = []string{
	pkcs11shim.Login, pkcs11shim.Initialize, pkcs11shim.FindObjects, pkcs11shim.GetInfo,
	pkcs11shim.GetSlotList, pkcs11shim.GetTokenInfo, pkcs11shim.GetSlotInfo, pkcs11shim.OpenSession,
	pkcs11shim.FindObjectsInit, pkcs11shim.FindObjectsFinal, pkcs11shim.GetAttributeValue,
	pkcs11shim.CloseSession, pkcs11shim.Finalize,
}

// lost makes the product reconnect, once.
var lost = pkcs11shim.Fail(pkcs11shim.Sign, pkcs11.CKR_DEVICE_REMOVED).Times(1)

// everyCallOfTheWayBack injects a second fault during the recovery from the first.
func everyCallOfTheWayBack(tr *trial) {
	for _, function := range someOf(tr, wayBack) {
		tr.inject("CKR_DEVICE_ERROR in "+function+", on the way back", nil, lost,
			pkcs11shim.Fail(function, pkcs11.CKR_DEVICE_ERROR).Times(1))
	}
	forget, name := pkcs11shim.LoseSessions, "all sessions, logins and handles forgotten"
	if tr.token.Can.FinalizedOnce {
		forget = pkcs11shim.CloseSessions
	}
	tr.inject(name, nil, forget(pkcs11shim.SignInit))
	tr.inject(name+", during a signature", nil, forget(pkcs11shim.Sign))
}

// lasting injects faults that occur several times, or last until the key was looked up again.
func lasting(tr *trial) {
	tr.inject("three CKR_DEVICE_ERROR in a row", nil,
		pkcs11shim.Fail(pkcs11shim.Sign, pkcs11.CKR_DEVICE_ERROR).Times(3))
	for _, code := range []uint{pkcs11.CKR_OPERATION_ACTIVE,
		pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED} {
		tr.inject(pkcs11shim.CodeName(code)+", until the key was looked up again",
			tr.untilCall(pkcs11shim.FindObjects), pkcs11shim.Fail(pkcs11shim.SignInit, code))
	}
	tr.impatient()
}

// untilCall returns a function that waits for a call of this function, and then removes the rules.
func (tr *trial) untilCall(function string) (heal func() error) {
	return func() error {
		return errors.Join(tr.until(func() bool { return tr.calls().Count(function) > 0 }),
			tr.shim.Rules())
	}
}

// impatient is a caller with a short deadline, which does not cost the other callers their
// connection.
func (tr *trial) impatient() {
	tr.quiet(pkcs11shim.Delay(pkcs11shim.Sign, 300*time.Millisecond))
	ctx, cancel := context.WithTimeout(tr.t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := tr.key.Load().Signer(ctx).Sign(nil, make([]byte, crypto.SHA256.Size()),
		crypto.SHA256); err == nil {
		tr.t.Error("the impatient caller has a signature")
	}
	if o := tr.storm(nil); o.attempts > 1 || tr.calls().Count(pkcs11shim.Login) > 0 {
		tr.t.Errorf("the others of an impatient caller: %+v\n%s", o, tr.calls())
	}
}

// keySwapped puts another key under the handle, or among the objects that are found.
func keySwapped(tr *trial) {
	tr.inject("another key under the handle, once", nil,
		pkcs11shim.SwapKey(pkcs11shim.SignInit, "other").Times(1))
	tr.inject("another key under the handle, until the key was looked up again",
		tr.untilCall(pkcs11shim.FindObjects), pkcs11shim.SwapKey(pkcs11shim.SignInit, "other"))
	tr.inject("another key found in its place, once", nil,
		pkcs11shim.SwapKey(pkcs11shim.FindObjects,
			"other").Times(1),
		pkcs11shim.Fail(pkcs11shim.Sign, pkcs11.CKR_KEY_HANDLE_INVALID).Times(1))
}

// keyAway removes the key for a while. A module that lists its keys when it is initialized does not
// see it for longer.
func keyAway(tr *trial) {
	tr.inject("the key missing until the module is initialised again",
		tr.untilCall(pkcs11shim.Initialize),
		pkcs11shim.Fail(pkcs11shim.Sign, pkcs11.CKR_KEY_HANDLE_INVALID).Times(1),
		pkcs11shim.FindAtMost(0))
}

// hangOfEveryCall makes each call of a signature or of a reconnection hang until it is abandoned.
func hangOfEveryCall(tr *trial) {
	for _, function := range []string{pkcs11shim.SignInit, pkcs11shim.Sign} {
		tr.inject("hang in "+function, tr.abandoned(), pkcs11shim.Hang(function))
	}
	for _, function := range someOf(tr, wayBack) {
		tr.inject("hang in "+function, tr.abandoned(), lost, pkcs11shim.Hang(function))
	}
}

// slow is a distant token: each call returns in time, but all calls of a connection take many times
// as long. It costs no second login.
func slow(tr *trial) {
	const fault = "each call takes a twelfth of the longest wait for one"
	o := tr.inject(fault, nil, lost, pkcs11shim.Delay(pkcs11shim.Any, tr.timeout/12))
	if n := tr.key.Load().Stats().Hanging; o.logins != 1 || n > 0 {
		tr.t.Errorf("%s: %d calls of C_Login, %d calls hang", fault, o.logins, n)
	}
}

// abandoned returns a function that waits until one more call is abandoned, and then removes the
// rules.
func (tr *trial) abandoned() (heal func() error) {
	before := tr.key.Load().Stats().Abandoned
	return func() error {
		return errors.Join(tr.until(func() bool {
			return tr.key.Load().Stats().Abandoned > before
		}), tr.shim.Rules())
	}
}

// fewSessions limits the sessions of a token, whatever the token reports about them. Requests wait,
// and none fails.
func fewSessions(tr *trial) {
	for _, limit := range []uint{1, 2, 16} {
		says := map[uint]string{limit: "reports it",
			pkcs11shim.SessionsUnlimited: "reports no limit",
			pkcs11shim.SessionsUnknown:   "reports nothing"}
		for _, said := range someOf(tr,
			[]uint{limit, pkcs11shim.SessionsUnlimited, pkcs11shim.SessionsUnknown}) {
			fault := fmt.Sprintf("sessions: %d in all, and the token %s", limit, says[said])
			o := tr.injectAtStart(fault, nil, pkcs11shim.LimitSessions(limit),
				pkcs11shim.ReportSessions(said))
			// Each costs a login at most.
			own := tr.ownFaults(len(tr.calls().With(pkcs11.CKR_SESSION_COUNT)))
			if o.attempts > 1 || o.logins > 1+own {
				tr.t.Errorf("%s: %+v: %v", fault, o, o.last)
			}
		}
	}
}

// daemonGone kills, restarts or stops the daemon under load.
func daemonGone(tr *trial) {
	for _, fault := range []struct {
		name  string
		begin func() error
		heal  func() error
	}{
		{"its daemon killed, and started again when it was missed", tr.token.Kill, func() error {
			return errors.Join(tr.until(func() bool {
				return tr.key.Load().Ready(tr.t.Context()) != nil
			}), tr.token.Start(tr.t.Context()))
		}},
		{"its daemon restarted under load", nil,
			func() error { return tr.token.Restart(tr.t.Context()) }},
		{"its daemon stopped (SIGSTOP), and continued when a call hung", tr.token.Pause,
			func() error {
				return errors.Join(tr.abandoned()(), tr.token.Continue())
			}},
	} {
		if !tr.token.HasDaemon() {
			if err := tr.token.Kill(); !errors.Is(err, tokens.ErrNoDaemon) {
				tr.t.Error(err)
			}
			tr.results.note(fault.name, tr.token.Name, "has no daemon")
			continue
		}
		if fault.begin != nil {
			must.OK(tr.t, fault.begin())
		}
		var rules []pkcs11shim.Rule
		if tr.token.Can.Lost.Sign == pkcs11.CKR_OK { // only a new connection needs the daemon
			rules = []pkcs11shim.Rule{lost}
		}
		tr.inject(fault.name, fault.heal, rules...)
	}
}

// filesGone moves the token's files away and back during a reconnection.
func filesGone(tr *trial) {
	before := tr.key.Load().Stats().Connections
	must.OK(tr.t, tr.token.MoveAway())
	tr.inject("the token's files moved away and back", func() error {
		err := tr.until(func() bool {
			return tr.key.Load().Ready(tr.t.Context()) != nil ||
				tr.key.Load().Stats().Connections > before
		})
		return errors.Join(err, tr.token.MoveBack())
	}, lost)
}

// pinRefused is a PIN that the token refuses. It is tried once. Then the product waits for another
// PIN.
func pinRefused(tr *trial) {
	tr.key.Load().Close()
	must.OK(tr.t, tr.token.Unlock(tr.t.Context())) // a TPM that was killed counts that too
	tr.pinFault("wrong PIN, until its source has the right one", nil)
	tr.pinChanged()
	tr.pinLocked()
	tr.finalTry()
}

// pinRefusedLate is a wrong PIN that the token refuses after the login was abandoned.
func pinRefusedLate(tr *trial) {
	tr.key.Load().Close()
	must.OK(tr.t, tr.token.Unlock(tr.t.Context()))
	tr.pinFault("wrong PIN that is refused too late, until its source has the right one",
		func() error {
			return tr.until(func() bool {
				return len(tr.calls().Of(pkcs11shim.Login).Hanging()) > 0 &&
					tr.key.Load().Stats().Abandoned > 0
			})
		}, pkcs11shim.Hang(pkcs11shim.Login))
}

// pinFault starts with a PIN that the token refuses, waits until the fault is in progress, and then
// provides the right PIN.
func (tr *trial) pinFault(fault string, underWay func() error, rules ...pkcs11shim.Rule) {
	tr.pin.set("00000000")
	tr.injectAtStart(fault, func() error {
		var err error
		if underWay != nil {
			err = underWay()
		}
		err = errors.Join(err, tr.shim.Rules(), tr.refused())
		tr.pin.set(hsm.PIN(tr.token.PIN))
		return err
	}, rules...)
	tr.requireRefusals(fault, 1)
	must.OK(tr.t, tr.token.Unlock(tr.t.Context()))
}

// requireRefusals requires that the token refused this many calls of C_Login because of the PIN.
func (tr *trial) requireRefusals(fault string, want int) {
	tr.t.Helper()
	logins := tr.calls().Of(pkcs11shim.Login)
	if n := len(logins.With(pkcs11.CKR_PIN_INCORRECT)) +
		len(logins.With(pkcs11.CKR_PIN_LOCKED)); n != want {
		tr.t.Errorf("%s: %d calls of C_Login were refused, want %d\n%s", fault, n, want, tr.calls())
	}
}

// refused waits until the PIN is refused, and checks that it stays refused for longer than the
// first pause between attempts.
func (tr *trial) refused() error {
	err := tr.until(func() bool {
		return errors.Is(tr.key.Load().Ready(tr.t.Context()),
			hsm.ErrPIN)
	})
	looks := 0
	return errors.Join(err, tr.until(func() bool {
		if err := tr.key.Load().Ready(tr.t.Context()); !errors.Is(err, hsm.ErrPIN) {
			tr.t.Errorf("look %d at a refused PIN: %v", looks, err)
		}
		looks++
		return looks == 30
	}))
}

// pinChanged changes the PIN on the token while the key is in use. Existing logins continue. After
// a fault that costs the login, the old PIN is tried once, and the new one as soon as the source
// has it. For that the module is initialized again: some keep the old PIN until then.
func (tr *trial) pinChanged() {
	const fault, fresh = "PIN changed on the token, login lost, then changed in its source",
		"86420864"
	must.OK(tr.t, tr.key.Load().Ready(tr.t.Context()))
	changePIN(tr.t, tr.token, fresh)
	tr.quiet()
	if o := tr.request(tr.t.Context(), 0); o.attempts > 1 ||
		tr.calls().Count(pkcs11shim.Login) > 0 {
		tr.t.Errorf("%s: the existing login did not continue: %+v; the last error: %v\n%s",
			fault, o,
			o.last, tr.calls())
	}
	heal, refusals := tr.refused, 1
	if tr.token.Can.KnowsOldPIN {
		heal, refusals = func() error {
			return tr.until(func() bool { return tr.calls().Count(pkcs11shim.Login) > 0 })
		}, 0
	}
	tr.inject(fault, func() error {
		err := heal()
		tr.pin.set(fresh)
		return err
	}, pkcs11shim.CloseSessions(pkcs11shim.SignInit))
	tr.requireRefusals(fault, refusals)
	tr.inject(fault+", and lost again", nil, pkcs11shim.CloseSessions(pkcs11shim.SignInit))
	tr.requireRefusals(fault+", and lost again", 0)
	tr.token.PIN = fresh
	tr.key.Load().Close()
	must.OK(tr.t, tr.token.Unlock(tr.t.Context()))
}

// pinLocked locks the token. The product does not try a login if the flags show the lock, and tries
// once if they do not. The token signs after it is unlocked, by itself or after a restart.
func (tr *trial) pinLocked() {
	const fault = "PIN locked, until the security officer unlocked it"
	if !tr.token.Can.Locks() {
		tr.results.note(fault, tr.token.Name, "never locks")
		return
	}
	answers := tr.token.Can.WrongPINs
	shows := answers[len(answers)-1].Flags&pkcs11.CKF_USER_PIN_LOCKED != 0
	tr.key.Load().Close()
	tr.wrongPINs(len(answers))
	tr.injectAtStart(fault, func() error {
		err := errors.Join(tr.refused(), tr.token.Unlock(tr.t.Context()))
		if !shows { // the PIN was refused, and is the same: only another process tries it again
			tr.restart()
		}
		return err
	})
	tr.requireRefusals(fault, map[bool]int{true: 0, false: 1}[shows])
}

// finalTry leaves one try of the PIN, which the product must not use, not even with the right PIN.
func (tr *trial) finalTry() {
	const fault = "one try of the PIN left, until somebody logged in"
	final := slices.IndexFunc(tr.token.Can.WrongPINs,
		func(a tokens.Answer) bool { return a.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0 })
	if final < 0 {
		tr.results.note(fault, tr.token.Name, "does not say")
		return
	}
	tr.key.Load().Close()
	tr.wrongPINs(final + 1)
	tr.injectAtStart(fault, func() error {
		err := tr.refused()
		if n := tr.calls().Count(pkcs11shim.Login); n != 0 {
			tr.t.Errorf("%s: C_Login was called %d times", fault, n)
		}
		return errors.Join(err, tr.token.Unlock(tr.t.Context()))
	})
	tr.requireRefusals(fault, 0)
}

// wrongPINs tries this many wrong PINs as another application.
func (tr *trial) wrongPINs(n int) {
	a := newApplication(tr.t, tr.token)
	session := a.open(tr.t)
	for range n {
		if err := a.Login(session, pkcs11.CKU_USER, "00000000"); err == nil {
			tr.t.Error("a wrong PIN was accepted")
		}
	}
	a.unload()
}
