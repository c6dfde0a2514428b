package tokens_test

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"k8s.io/apimachinery/pkg/util/wait"

	"hsm-signer/hsm"
	"hsm-signer/integration/shim"
	"hsm-signer/integration/tokens"
)

// A trial is one key on one token behind a shim, which faults befall one after another. After each
// the key must sign again by itself.
type trial struct {
	t      *testing.T
	token  *tokens.Token
	shim   *shim.Shim
	key    *hsm.Key
	public crypto.PublicKey
	table  *table
}

// forEachTrial runs a test with the key "ca" on a fresh token of each kind, which holds the key
// "other" too.
func forEachTrial(t *testing.T, timeout time.Duration, test func(trial)) {
	results := &table{}
	forEach(t, func(t *testing.T, token *tokens.Token) {
		public := generateRSA(t, token, "ca")
		_, err := token.Generate("rsa-2048", "other", []byte{2})
		must(t, err)
		s := behind(t, token)
		c := config(token, "ca")
		c.Module, c.Timeout, c.MaxSessions = s.Module, timeout, 4
		tr := trial{t: t, token: token, shim: s, key: newKey(t, c, public), public: public, table: results}
		must(t, tr.key.Ready(t.Context()))
		test(tr)
	})
	t.Logf("fault × token: attempts of the slowest request / C_Login calls / requests lost / signatures with a wrong key\n%s", results)
}

// befall lets requests come in while a fault is there, ends the fault with heal when it has shown
// itself, and requires that every request gets its signature.
func (tr trial) befall(fault string, heal func() error, rules ...shim.Rule) outcome {
	tr.t.Helper()
	// What an earlier fault left hanging keeps the module from being finalised.
	must(tr.t, wait.PollUntilContextTimeout(tr.t.Context(), retryEvery/4, retryFor, true, func(context.Context) (bool, error) {
		return tr.key.Stats().Hanging == 0, nil
	}))
	must(tr.t, tr.shim.Forget())
	must(tr.t, tr.shim.Rules(rules...))
	outcome := tr.storm(8, heal)
	must(tr.t, tr.shim.Rules())
	outcome.logins = calls(tr.t, tr.shim).Count(shim.Login)
	tr.table.add(fault, tr.token.Name, outcome)
	if outcome.lost > 0 || outcome.wrong > 0 {
		tr.t.Errorf("%s: %+v; the last error: %v\n%s", fault, outcome, outcome.last, calls(tr.t, tr.shim))
	}
	return outcome
}

// befallOnce is a fault that comes once: no request fails for it, each finds its way out by itself.
func (tr trial) befallOnce(fault string, rule shim.Rule, logins, initialised int) {
	tr.t.Helper()
	outcome := tr.befall(fault, nil, rule.Times(1))
	n := calls(tr.t, tr.shim).Count(shim.Initialize)
	if outcome.attempts > 1 || outcome.logins != logins || n != initialised {
		tr.t.Errorf("%s: %d attempts, %d calls of C_Login and %d of C_Initialize; want one, %d and %d; the last error: %v",
			fault, outcome.attempts, outcome.logins, n, logins, initialised, outcome.last)
	}
}

// An outcome is what came of the requests that met a fault.
type outcome struct {
	attempts, logins, lost, wrong int
	last                          error
}

func (o outcome) String() string {
	return fmt.Sprintf("%d/%d/%d/%d", o.attempts, o.logins, o.lost, o.wrong)
}

// storm makes requests at once, each tried again until it is signed, as the controller does.
func (tr trial) storm(requests int, heal func() error) (o outcome) {
	ctx, cancel := context.WithTimeout(tr.t.Context(), retryFor)
	defer cancel()
	var group sync.WaitGroup
	var mu sync.Mutex
	for i := range requests {
		group.Go(func() {
			attempts, wrong, last, err := tr.request(ctx, i)
			mu.Lock()
			defer mu.Unlock()
			o.attempts = max(o.attempts, attempts)
			if err != nil {
				o.lost++
			}
			if wrong {
				o.wrong++
			}
			o.last = errors.Join(o.last, last)
		})
	}
	if heal != nil {
		if err := heal(); err != nil {
			tr.t.Error(err)
		}
	}
	group.Wait()
	return o
}

// request asks for one signature until it comes.
func (tr trial) request(ctx context.Context, i int) (attempts int, wrong bool, last, err error) {
	digest := sha256.Sum256(fmt.Appendf(nil, "request %d", i))
	err = wait.PollUntilContextCancel(ctx, retryEvery/4, true, func(ctx context.Context) (bool, error) {
		attempts++
		signature, err := tr.key.Signer(ctx).Sign(nil, digest[:], crypto.SHA256)
		wrong = wrong || err == nil && !verifies(tr.public, digest[:], signature)
		if err != nil {
			last = err
		}
		return err == nil, nil
	})
	return attempts, wrong, last, err
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

// abandoned ends a fault once another call was abandoned than those so far, by taking the rules away.
func (tr trial) abandoned() (heal func() error) {
	before := tr.key.Stats().Abandoned
	return func() error {
		err := wait.PollUntilContextTimeout(tr.t.Context(), retryEvery/4, retryFor, true, func(context.Context) (bool, error) {
			return tr.key.Stats().Abandoned > before, nil
		})
		return errors.Join(err, tr.shim.Rules())
	}
}

// ladder are codes of every rung, and one that no standard knows, by what the way out of each costs:
// calls of C_Login and C_Initialize.
var ladder = []struct {
	logins, initialised int
	codes               []uint
}{
	{0, 0, []uint{pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED, pkcs11.CKR_FUNCTION_CANCELED}},
	{1, 0, []uint{
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_KEY_TYPE_INCONSISTENT,
		pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_MECHANISM_INVALID,
	}},
	{1, 1, []uint{
		pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_TOKEN_NOT_PRESENT,
		pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
		pkcs11.CKR_VENDOR_DEFINED + 1,
	}},
}

// Each code comes once before C_SignInit, before C_Sign, and in the place of C_Sign's answer.
func TestFaultsOfEveryRung(t *testing.T) {
	forEachTrial(t, 5*time.Second, func(tr trial) {
		for _, rung := range ladder {
			for _, code := range rung.codes {
				name := cmp.Or(strings.TrimPrefix(pkcs11.Error(code).Error(), fmt.Sprintf("pkcs11: 0x%X: ", code)), "a vendor's code")
				tr.befallOnce(name+" at C_SignInit", shim.Fail(shim.SignInit, code), rung.logins, rung.initialised)
				tr.befallOnce(name+" at C_Sign", shim.Fail(shim.Sign, code), rung.logins, rung.initialised)
				tr.befallOnce(name+" after C_Sign", shim.FailAfter(shim.Sign, code), rung.logins, rung.initialised)
			}
		}
		tr.befall("all sessions lost", nil, shim.LoseSessions(shim.SignInit))
		tr.befall("all sessions lost at C_Sign", nil, shim.LoseSessions(shim.Sign))
		tr.befall("three device errors", nil, shim.Fail(shim.Sign, pkcs11.CKR_DEVICE_ERROR).Times(3))
	})
}

// Another key comes to stand behind the handle, and behind what is found; none of its signatures
// gets out.
func TestKeySwappedUnderHandle(t *testing.T) {
	forEachTrial(t, 5*time.Second, func(tr trial) {
		tr.befall("key swapped under the handle", nil, shim.SwapKey(shim.SignInit, "other").Times(1))
		tr.befall("key swapped when found", nil,
			shim.SwapKey(shim.FindObjects, "other").Times(1), shim.Fail(shim.Sign, pkcs11.CKR_KEY_HANDLE_INVALID).Times(1))
	})
}

// Each call hangs until it is abandoned, on the way to a signature or on the way back to one.
func TestHangsOfEveryCall(t *testing.T) {
	lost := shim.Fail(shim.Sign, pkcs11.CKR_DEVICE_ERROR).Times(1)
	forEachTrial(t, time.Second, func(tr trial) {
		for _, function := range []string{shim.SignInit, shim.Sign} {
			tr.befall("hang in "+function, tr.abandoned(), shim.Hang(function))
		}
		for _, function := range []string{
			shim.CloseSession, shim.Finalize, shim.Initialize, shim.GetSlotList, shim.GetTokenInfo, shim.OpenSession,
			shim.Login, shim.FindObjectsInit, shim.FindObjects, shim.FindObjectsFinal, shim.GetAttributeValue,
		} {
			tr.befall("hang in "+function, tr.abandoned(), lost, shim.Hang(function))
		}
	})
}

// A token with few sessions makes requests wait, and fails none.
func TestFewSessions(t *testing.T) {
	for _, limit := range []uint{1, 2, 16} {
		results := &table{}
		forEach(t, func(t *testing.T, token *tokens.Token) {
			public := generateRSA(t, token, "ca")
			for _, said := range []uint{limit, shim.SessionsUnlimited, shim.SessionsUnknown} {
				s := behind(t, token)
				must(t, s.Rules(shim.LimitSessions(limit), shim.ReportSessions(said)))
				c := config(token, "ca")
				c.Module = s.Module
				tr := trial{t: t, token: token, shim: s, key: newKey(t, c, public), public: public, table: results}
				outcome := tr.storm(32, nil)
				outcome.logins = calls(t, s).Count(shim.Login)
				results.add(fmt.Sprintf("%d sessions, says %#x", limit, said), token.Name, outcome)
				// A token may have faults of its own under load, and each costs a login at most.
				own := len(calls(t, s)) - len(calls(t, s).With(pkcs11.CKR_OK)) - len(calls(t, s).With(pkcs11.CKR_SESSION_COUNT))
				if outcome.attempts > 1 || outcome.lost > 0 || outcome.logins > 1+own {
					t.Errorf("%d sessions, of which the token says %#x: %s: %v", limit, said, outcome, outcome.last)
				}
				tr.key.Close()
			}
		})
		t.Logf("attempts / C_Login calls / lost / wrong\n%s", results)
	}
}

// A fault that stays on a session is more than a session's: the key is found anew, and again.
func TestFaultThatStays(t *testing.T) {
	forEachTrial(t, 5*time.Second, func(tr trial) {
		for _, code := range []uint{pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED} {
			tr.befall(pkcs11.Error(code).Error()+", until the key was found anew", func() error {
				err := wait.PollUntilContextTimeout(tr.t.Context(), retryEvery/4, retryFor, true, func(context.Context) (bool, error) {
					calls, err := tr.shim.Calls()
					return calls.Count(shim.FindObjects) > 0, err
				})
				return errors.Join(err, tr.shim.Rules())
			}, shim.Fail(shim.SignInit, code))
		}
	})
}

// A caller that cannot wait does not cost the others their connection.
func TestImpatientCaller(t *testing.T) {
	forEachTrial(t, 5*time.Second, func(tr trial) {
		must(tr.t, errors.Join(tr.shim.Forget(), tr.shim.Rules(shim.Delay(shim.Sign, 300*time.Millisecond))))
		impatient, cancel := context.WithTimeout(tr.t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := tr.key.Signer(impatient).Sign(nil, make([]byte, crypto.SHA256.Size()), crypto.SHA256); err == nil {
			tr.t.Error("the impatient caller has a signature")
		}
		outcome := tr.storm(8, nil)
		if n := calls(tr.t, tr.shim).Count(shim.Login); outcome.attempts > 1 || n > 0 {
			tr.t.Errorf("the others: %s, and %d logins: %v\n%s", outcome, n, outcome.last, calls(tr.t, tr.shim))
		}
	})
}

// The daemon of the token is killed, or stopped for a while, and requests come in meanwhile.
func TestDaemonGoneUnderLoad(t *testing.T) {
	forEachTrial(t, 2*time.Second, func(tr trial) {
		if !tr.token.HasDaemon() {
			return
		}
		must(tr.t, tr.token.Kill())
		tr.befall("daemon killed and started", func() error { return tr.token.Start(tr.t.Context()) })
		must(tr.t, tr.token.Pause())
		abandoned := tr.abandoned()
		tr.befall("daemon stopped (SIGSTOP) and continued", func() error {
			if tr.token.Can.Lost.Sign == pkcs11.CKR_OK { // it signs without its daemon
				return tr.token.Continue()
			}
			return errors.Join(abandoned(), tr.token.Continue())
		})
	})
}

// The files of the token go and come back.
func TestTokenMovedAwayUnderLoad(t *testing.T) {
	forEachTrial(t, 2*time.Second, func(tr trial) {
		if tr.token.SoftHSM == nil || tr.token.HasDaemon() {
			return
		}
		tr.befall("token directory moved away and back", func() error {
			if err := tr.token.SoftHSM.MoveAway(); err != nil {
				return err
			}
			gone := wait.PollUntilContextTimeout(tr.t.Context(), retryEvery, retryFor, true, func(ctx context.Context) (bool, error) {
				return tr.key.Ready(ctx) != nil, nil
			})
			return errors.Join(gone, tr.token.SoftHSM.MoveBack())
		})
	})
}

// A table shows outcomes by fault and kind of token.
type table struct {
	mu    sync.Mutex
	rows  []string
	cells map[string]map[string]string
}

func (b *table) add(row, column string, o outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cells == nil {
		b.cells = map[string]map[string]string{}
	}
	if b.cells[row] == nil {
		b.cells[row] = map[string]string{}
		b.rows = append(b.rows, row)
	}
	b.cells[row][column] = o.String()
}

// String has a line for each fault and a column for each kind of token.
func (b *table) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%-48s", "")
	for _, kind := range tokens.All() {
		fmt.Fprintf(&text, " %-13s", kind.Name)
	}
	for _, row := range b.rows {
		fmt.Fprintf(&text, "\n%-48s", row)
		for _, kind := range tokens.All() {
			fmt.Fprintf(&text, " %-13s", b.cells[row][kind.Name])
		}
	}
	return text.String()
}
