package pkcs11shim_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
)

func TestWithoutRulesNothingChanges(t *testing.T) {
	a := newApplication(t)
	if got := a.sign(a.session, a.private[second]); got != second {
		t.Errorf("signed with %s", got)
	}
	calls := a.calls(t)
	if calls.Count(pkcs11shim.SignInit) != 1 || calls.Count(pkcs11shim.Sign) != 2 ||
		len(calls) != 3 {
		t.Errorf("want one C_SignInit and two C_Sign (the first asks for the length), got:\n%s",
			calls)
	}
	if len(calls.With(pkcs11.CKR_OK)) != 3 || len(calls.By(os.Getpid())) != 3 {
		t.Errorf("want all of this process and all well:\n%s", calls)
	}
}

func TestAnswersOfTheModuleAreWrittenDown(t *testing.T) {
	a := newApplication(t)
	err := a.module.Login(a.session, pkcs11.CKU_USER, a.token.PIN)
	if name(err) != "CKR_USER_ALREADY_LOGGED_IN" {
		t.Errorf("second login: %v", err)
	}
	calls := a.calls(t)
	if len(calls) != 1 ||
		len(calls.Of(pkcs11shim.Login).With(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) != 1 ||
		calls[0].Did != nil {
		t.Errorf("want one C_Login with the module's own answer:\n%s", calls)
	}
}

// A rule with a percentage applies to about this share of calls, and to the same calls when it is
// set again.
func TestPercent(t *testing.T) {
	a := newApplication(t)
	const calls = 500
	fallsOn := func(percent, seed uint) (numbers []int) {
		a.rules(t,
			pkcs11shim.Fail(pkcs11shim.SignInit, pkcs11.CKR_DEVICE_ERROR).Percent(percent, seed))
		for i := range calls {
			if a.sign(a.session, a.private[first]) != first {
				numbers = append(numbers, i)
			}
		}
		return numbers
	}
	for _, percent := range []int{1, 5, 20} {
		one, again, other := fallsOn(uint(percent), 1), fallsOn(uint(percent),
			1), fallsOn(uint(percent), 2)
		if want := calls * percent / 100; len(one) < want/4 || len(one) > 3*want {
			t.Errorf("%d %%: %d of %d calls", percent, len(one), calls)
		}
		if !slices.Equal(one, again) || slices.Equal(one, other) {
			t.Errorf("%d %%: %v, then %v, and with another seed %v", percent, one, again, other)
		}
	}
}

// Every CKR code of the recovery steps is returned by the chosen calls.
func TestFailFromAndTimes(t *testing.T) {
	a := newApplication(t)
	for _, code := range []uint{pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_SESSION_HANDLE_INVALID,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_KEY_HANDLE_INVALID} {
		a.rules(t, pkcs11shim.Fail(pkcs11shim.SignInit, code).From(2).Times(2))
		var got []string
		for range 5 {
			got = append(got, a.sign(a.session, a.private[first]))
		}
		fails := name(pkcs11.Error(code))
		if want := []string{first, fails, fails, first, first}; !slices.Equal(got, want) {
			t.Errorf("signatures are %v, want %v", got, want)
		}
	}
	a.rules(t, pkcs11shim.Fail(pkcs11shim.Any, pkcs11.CKR_GENERAL_ERROR))
	for range 3 {
		if _, err := a.find(first); name(err) != "CKR_GENERAL_ERROR" {
			t.Errorf("with a permanent rule for any function: %v", err)
		}
	}
	a.rules(t)
	if got := a.sign(a.session, a.private[first]); got != first {
		t.Errorf("after the rules had gone: %s", got)
	}
}

// A failure before the call leaves the operation active, a failure after it does not.
func TestFailBeforeAndAfter(t *testing.T) {
	a := newApplication(t)
	const active, failed = "CKR_OPERATION_ACTIVE", "CKR_FUNCTION_FAILED"
	a.rules(t, pkcs11shim.FailAfter(pkcs11shim.Sign, pkcs11.CKR_FUNCTION_FAILED).From(2).Times(1))
	if got := []string{a.sign(a.session, a.private[first]),
		a.sign(a.session, a.private[first])}; !slices.Equal(got, []string{failed, first}) {
		t.Errorf("failed after: %v", got)
	}
	a.rules(t, pkcs11shim.Fail(pkcs11shim.Sign, pkcs11.CKR_FUNCTION_FAILED).From(2).Times(1))
	if got := []string{a.sign(a.session, a.private[first]),
		a.sign(a.session, a.private[first])}; !slices.Equal(got, []string{failed, active}) {
		t.Errorf("failed before: %v", got)
	}
	calls := a.calls(t).With(pkcs11.CKR_FUNCTION_FAILED)
	if len(calls) != 2 || calls[0].Did[0] != "failafter" || calls[1].Did[0] != "fail" {
		t.Errorf("the log does not tell whose answers they were:\n%s", calls)
	}
}

func TestDelay(t *testing.T) {
	a := newApplication(t)
	a.rules(t, pkcs11shim.Delay(pkcs11shim.SignInit, 20*time.Millisecond).Times(1),
		pkcs11shim.Fail(pkcs11shim.SignInit, pkcs11.CKR_DEVICE_MEMORY).Times(1))
	got := []string{a.sign(a.session, a.private[first]), a.sign(a.session, a.private[first])}
	if want := []string{"CKR_DEVICE_MEMORY", first}; !slices.Equal(got, want) {
		t.Errorf("signatures are %v, want %v", got, want)
	}
	calls := a.calls(t).Of(pkcs11shim.SignInit)
	if !slices.Equal(calls[0].Did, []string{"delay", "fail"}) || calls[1].Did != nil {
		t.Errorf("want a delay and a failure, and then neither:\n%s", calls)
	}
}

// A call hangs until its rule is removed. Other calls do not hang.
func TestHang(t *testing.T) {
	a := newApplication(t)
	hang := pkcs11shim.Hang(pkcs11shim.Sign).Times(1)
	a.rules(t, hang)
	other := must.Get(a.module.OpenSession(a.slot, pkcs11.CKF_SERIAL_SESSION))(t)
	done := make(chan string, 1)
	go func() { done <- a.sign(a.session, a.private[first]) }()
	must.Eventually(t, "the call to hang", func(context.Context) (bool, error) {
		calls, err := a.shim.Calls()
		return len(calls.Of(pkcs11shim.Sign).Hanging()) == 1, err
	})
	if got := a.sign(other, a.private[second]); got != second {
		t.Errorf("on another session meanwhile: %s", got)
	}
	a.rules(t, pkcs11shim.Fail(pkcs11shim.Login, pkcs11.CKR_PIN_INCORRECT), hang.From(100))
	if got := <-done; got != first {
		t.Errorf("when the rule had gone: %s", got)
	}
	if calls := a.calls(t); len(calls.Hanging()) != 0 || calls.Count(pkcs11shim.Sign) != 4 {
		t.Errorf("want each call once and none hanging:\n%s", calls)
	}
}

func TestLoseSessions(t *testing.T) {
	a := newApplication(t)
	a.rules(t, pkcs11shim.LoseSessions(pkcs11shim.SignInit).From(2))
	if got := a.sign(a.session, a.private[first]); got != first {
		t.Errorf("before: %s", got)
	}
	for range 2 {
		if got := a.sign(a.session, a.private[first]); got != "CKR_SESSION_HANDLE_INVALID" {
			t.Errorf("after: %s", got)
		}
	}
	calls := a.calls(t)
	if n := len(calls.Of(pkcs11shim.SignInit)); n != 3 || calls.Count(pkcs11shim.Initialize) != 0 {
		t.Errorf("want three C_SignInit, and none of the shim's own calls:\n%s", calls)
	}
	a.session = must.Get(a.module.OpenSession(a.slot, pkcs11.CKF_SERIAL_SESSION))(t)
	if _, err := a.find(first); err == nil {
		t.Error("a private key is found although the login was lost")
	}
	must.OK(t, a.module.Login(a.session, pkcs11.CKU_USER, a.token.PIN))
	key := must.Get(a.find(first))(t)
	if got := a.sign(a.session, key); got != first {
		t.Errorf("with a new session: %s", got)
	}
}

func TestCloseSessions(t *testing.T) {
	a := newApplication(t)
	a.rules(t, pkcs11shim.CloseSessions(pkcs11shim.SignInit))
	if got := a.sign(a.session, a.private[first]); got != "CKR_SESSION_HANDLE_INVALID" {
		t.Errorf("on a session that was closed: %s", got)
	}
	a.open(t) // and logs in, which is refused when the login lasts
	key := must.Get(a.find(first))(t)
	if got := a.sign(a.session, key); got != first {
		t.Errorf("with a new session: %s", got)
	}
	if calls := a.calls(t); calls.Count(pkcs11shim.CloseAllSessions) != 0 {
		t.Errorf("the shim's own call is in the log:\n%s", calls)
	}
}

func TestLimitSessions(t *testing.T) {
	a := newApplication(t)
	a.rules(t, pkcs11shim.LimitSessions(3)) // one is open
	open := func(n int) (opened []pkcs11.SessionHandle, got string) {
		for range n {
			session, err := a.module.OpenSession(a.slot, pkcs11.CKF_SERIAL_SESSION)
			if err != nil {
				return opened, name(err)
			}
			opened = append(opened, session)
		}
		return opened, ""
	}
	opened, got := open(5)
	if len(opened) != 2 || got != "CKR_SESSION_COUNT" {
		t.Errorf("opened %d sessions more, then %s", len(opened), got)
	}
	must.OK(t, a.module.CloseSession(opened[0]))
	if opened, _ := open(5); len(opened) != 1 {
		t.Errorf("opened %d instead of one", len(opened))
	}
	must.OK(t, a.module.CloseAllSessions(a.slot))
	if opened, _ := open(5); len(opened) != 3 {
		t.Errorf("opened %d after all were closed", len(opened))
	}
	a.rules(t, pkcs11shim.LimitSessions(3), pkcs11shim.LoseSessions(pkcs11shim.GetSlotList))
	must.Get(a.module.GetSlotList(true))(t)
	if opened, _ := open(5); len(opened) != 3 {
		t.Errorf("opened %d after all were lost", len(opened))
	}
}

func TestTokenInfo(t *testing.T) {
	a := newApplication(t)
	before := must.Get(a.module.GetTokenInfo(a.slot))(t)
	for _, most := range []uint{2, pkcs11shim.SessionsUnlimited, pkcs11shim.SessionsUnknown} {
		a.rules(t, pkcs11shim.ReportSessions(most))
		if info, err := a.module.GetTokenInfo(a.slot); err != nil || info.MaxSessionCount != most ||
			info.Label != before.Label {
			t.Errorf("%d sessions on %q, %v; want %d on %q", info.MaxSessionCount, info.Label, err,
				most, before.Label)
		}
	}
	a.rules(t, pkcs11shim.AddTokenFlags(pkcs11.CKF_USER_PIN_FINAL_TRY))
	if info, err := a.module.GetTokenInfo(a.slot); err != nil ||
		info.Flags != before.Flags|pkcs11.CKF_USER_PIN_FINAL_TRY {
		t.Errorf("flags are %#x, %v", info.Flags, err)
	}
}

func TestSwapKey(t *testing.T) {
	a := newApplication(t)
	a.rules(t, pkcs11shim.SwapKey(pkcs11shim.FindObjects, second))
	key := must.Get(a.find(first))(t)
	a.rules(t)
	if got := a.label(t, key); got != second {
		t.Errorf("found %s", got)
	}
	a.rules(t, pkcs11shim.SwapKey(pkcs11shim.SignInit, second))
	if got := a.sign(a.session, a.private[first]); got != second {
		t.Errorf("signed with %s", got)
	}
	if got := a.label(t, a.private[first]); got != first {
		t.Errorf("the label was read of %s", got)
	}
	a.rules(t, pkcs11shim.SwapKey(pkcs11shim.GetAttributeValue, second))
	if got := a.label(t, a.private[first]); got != second {
		t.Errorf("the label was read of %s", got)
	}
	a.rules(t, pkcs11shim.SwapKey(pkcs11shim.SignInit, "none"))
	if got := a.sign(a.session, a.private[first]); got != "CKR_GENERAL_ERROR" {
		t.Errorf("instead of the key a missing one: %s", got)
	}
}

// Objects are found in batches of the size in the rule, and none is lost.
func TestFindAtMost(t *testing.T) {
	a := newApplication(t)
	for most, want := range map[uint][]int{0: {0, 0}, 1: {1, 1, 0}, 2: {2, 0}, 3: {2, 0}} {
		a.rules(t, pkcs11shim.FindAtMost(most))
		must.OK(t,
			a.module.FindObjectsInit(a.session,
				[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)}))
		for i, n := range want {
			if found, _, err := a.module.FindObjects(a.session, 8); err != nil || len(found) != n {
				t.Errorf("at most %d: batch %d has %d, %v; want %d", most, i, len(found), err, n)
			}
		}
		must.OK(t, a.module.FindObjectsFinal(a.session))
	}
	if n := len(a.calls(t).Under(pkcs11shim.FindAtMost(0))); n != 9 {
		t.Errorf("the log has %d such calls", n)
	}
}

// An error in the rules shows in every call.
func TestRulesThatCannotBeRead(t *testing.T) {
	a := newApplication(t)
	rules := ""
	for _, variable := range a.shim.Env() {
		if path, is := strings.CutPrefix(variable, "HSM_SHIM_RULES="); is {
			rules = path
		}
	}
	for _, text := range []string{"nonsense", "1 0 C_Typo fail 5", "1 0 C_Sign typo 5",
		"1 0 C_Sign fail five", "1 0 C_Sign fail", "1 0 C_FindObjects swap x",
		strings.Repeat("1 0 C_Sign hang\n", 65)} {
		must.OK(t, os.WriteFile(rules, []byte(text+"\n"), 0o600))
		if _, err := a.module.GetSlotList(true); err == nil ||
			!strings.Contains(err.Error(), "80005110") {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	a.rules(t)
	if _, err := a.module.GetSlotList(true); err != nil {
		t.Errorf("without rules: %v", err)
	}
}

// Calls of many threads are counted one by one, even while sessions are lost.
func TestThreads(t *testing.T) {
	a := newApplication(t)
	const threads, each, fails = 16, 40, 7
	a.rules(t,
		pkcs11shim.Fail(pkcs11shim.OpenSession,
			pkcs11.CKR_DEVICE_ERROR).From(100).Times(fails),
		pkcs11shim.LoseSessions(pkcs11shim.OpenSession).From(200).Times(50))
	var failed [threads]int
	var all sync.WaitGroup
	for i := range threads {
		all.Go(func() {
			for range each {
				session, err := a.module.OpenSession(a.slot, pkcs11.CKF_SERIAL_SESSION)
				if name(err) == "CKR_DEVICE_ERROR" {
					failed[i]++
				}
				if err == nil {
					_ = a.sign(session, a.private[first])
					_ = a.module.CloseSession(session)
				}
			}
		})
	}
	all.Wait()
	sum := 0
	for _, n := range failed {
		sum += n
	}
	calls := a.calls(t)
	if opened := calls.Of(pkcs11shim.OpenSession); sum != fails || len(opened) != threads*each ||
		len(opened.With(pkcs11.CKR_DEVICE_ERROR)) != fails {
		t.Errorf("%d calls failed of %d; want %d of %d", sum, len(opened), fails, threads*each)
	}
	seen := map[uint64]bool{}
	for _, call := range calls {
		if seen[call.Number] {
			t.Fatalf("two calls have the number %d", call.Number)
		}
		seen[call.Number] = true
	}
}

// child signs once and exits with 0. Every process has its own count of calls.
func child() int {
	module := pkcs11.New(os.Getenv(childVariable))
	if module == nil || module.Initialize() != nil {
		return 2
	}
	defer module.Destroy()
	slots, err := module.GetSlotList(true)
	if err != nil {
		return 3
	}
	session, err := module.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return 4
	}
	err = module.Login(session, pkcs11.CKU_USER, "wrong")
	_ = module.Finalize()
	fmt.Println(name(err))
	return 0
}

func TestProcessesShareTheLog(t *testing.T) {
	a := newApplication(t)
	a.rules(t, pkcs11shim.Fail(pkcs11shim.Login, pkcs11.CKR_PIN_LOCKED).Times(1))
	const processes = 8
	commands := make([]*exec.Cmd, processes)
	outputs := make([]bytes.Buffer, processes)
	for i := range commands {
		commands[i] = exec.Command(os.Args[0])
		commands[i].Env = append(os.Environ(), childVariable+"="+a.shim.Module)
		commands[i].Stdout, commands[i].Stderr = &outputs[i], &outputs[i]
		must.OK(t, commands[i].Start())
	}
	for i, command := range commands {
		if err := command.Wait(); err != nil || outputs[i].String() != "CKR_PIN_LOCKED\n" {
			t.Errorf("process %d: %v: %s", i, err, &outputs[i])
		}
	}
	calls := a.calls(t)
	for _, command := range commands {
		if own := calls.By(command.Process.Pid); own.Count(pkcs11shim.Login) != 1 ||
			own.Count(pkcs11shim.Initialize) != 1 {
			t.Errorf("want one C_Initialize and one C_Login of each process:\n%s", own)
		}
	}
	if n := calls.Count(pkcs11shim.Login); n != processes {
		t.Errorf("C_Login was called %d times, want %d", n, processes)
	}
}

// A process is killed instead of the call, or after the module has done it.
func TestKill(t *testing.T) {
	a := newApplication(t)
	for _, c := range []struct {
		rule pkcs11shim.Rule
		want int // calls in the log
	}{{pkcs11shim.Kill(pkcs11shim.Login), 0}, {pkcs11shim.KillAfter(pkcs11shim.Login), 1}} {
		must.OK(t, a.shim.Forget())
		a.rules(t, c.rule)
		command := exec.Command(os.Args[0])
		command.Env = append(os.Environ(), childVariable+"="+a.shim.Module)
		out, err := command.CombinedOutput()
		if status, is := command.ProcessState.Sys().(syscall.WaitStatus); !is ||
			!status.Signaled() || status.Signal() != syscall.SIGKILL {
			t.Errorf("%s: the process was not killed: %v: %s", c.rule, err, out)
		}
		if calls := a.calls(t); len(calls.Of(pkcs11shim.Login).
			With(pkcs11.CKR_PIN_INCORRECT)) != c.want || calls.Count(pkcs11shim.OpenSession) != 1 {
			t.Errorf("%s: want C_Login %d times:\n%s", c.rule, c.want, calls)
		}
	}
}

func TestWhatIsSignedIsWrittenDown(t *testing.T) {
	a := newApplication(t)
	a.sign(a.session, a.private[first])
	calls := a.calls(t).Of(pkcs11shim.Sign) // the first asks how long a signature will be
	if len(calls) != 2 || calls[0].Signed != nil || !bytes.Equal(calls[1].Signed, digest[:]) {
		t.Errorf("want one C_Sign of %x: %+v", digest, calls)
	}
}

func TestModuleThatIsNotThere(t *testing.T) {
	if _, err := pkcs11shim.New(t.Context(), t.TempDir(),
		filepath.Join(t.TempDir(), "none.so")); err == nil {
		t.Error("a shim was created before a missing module")
	}
}

func TestTooManyRules(t *testing.T) {
	a := newApplication(t)
	if err := a.shim.Rules(make([]pkcs11shim.Rule, 65)...); err == nil {
		t.Error("more rules were accepted than the module reads")
	}
}
