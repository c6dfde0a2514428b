package hsm

import (
	"errors"
	"os"
	"regexp"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/cryptoki"
	"hsm-signer/internal/must"
)

// aKey is one that is not in touch with a module.
func aKey() *Key {
	k := &Key{config: Config{PIN: PIN("1234").Fixed()}}
	k.user = cryptoki.NewUser(cryptoki.Config{Timeout: time.Second, MaxSessions: 64}, &k.counts)
	return k
}

// hangOn makes attempts in which a call hangs, each as soon as one may, and returns after how many
// and how long one gave up, or that one did not within an hour.
func hangOn(k *Key, early error) (attempts int, took time.Duration, gaveUp bool) {
	began := time.Now()
	for time.Since(began) < time.Hour {
		attempts++
		k.counts.Hanging.Add(1)
		hung := &cryptoki.AbandonedError{Call: "C_Sign", Timeout: k.config.Timeout, Early: early}
		if errors.Is(k.tried(unavailable(hung, "sign")), ErrHung) {
			return attempts, time.Since(began), true
		}
		<-time.After(time.Until(k.notYet))
	}
	return attempts, time.Since(began), false
}

// A call that was cut off, since all together took too long, might have come back: the module does
// not hang.
func TestSlowIsNotHung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if attempts, took, gaveUp := hangOn(aKey(), errSlow); gaveUp {
			t.Errorf("one gave up after %d attempts and %s", attempts, took)
		}
	})
}

// A token that hangs permanently ends the process, and the next, and so on, as long as it hangs:
// not so often that the unit's limit of starts is reached, and nobody starts another when the token
// is back. What they leave hanging meanwhile is not the end before that.
func TestHangsDoNotReachTheLimitOfStarts(t *testing.T) {
	text, err := os.ReadFile("../deploy/systemd/hsm-signer.service")
	must.OK(t, err)
	says := func(name string) int {
		line := regexp.MustCompile(`(?m)^` + name + `=(\d+)$`).FindSubmatch(text)
		if line == nil {
			t.Fatalf("the unit does not say %s", name)
		}
		return must.Value(strconv.Atoi(string(line[1])))(t)
	}
	interval := time.Duration(says("StartLimitIntervalSec")) * time.Second
	pause := time.Duration(says("RestartSec")) * time.Second
	synctest.Test(t, func(t *testing.T) {
		attempts, took, gaveUp := hangOn(aKey(), nil)
		if starts := says("StartLimitBurst"); !gaveUp ||
			time.Duration(starts)*(took+pause) <= interval {
			t.Errorf("one gave up: %t, after %s; %d times that are not %s", gaveUp, took, starts,
				interval)
		}
		if left := 2 * attempts; left >= cryptoki.MoreHangs { // a call each, and one that tidies up
			t.Errorf("%d attempts leave %d calls hanging", attempts, left)
		}
	})
}

// After logins that may have been ones with a wrong PIN, and failed when nobody waited for them any
// more, one waits longer each time, as after those that failed in time: what else fails in between
// does not count.
func TestWaitsAfterLateLogins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := aKey()
		for _, want := range []time.Duration{cryptoki.FirstLoginRetry, 2 * cryptoki.FirstLoginRetry,
			4 * cryptoki.FirstLoginRetry} {
			for range 3 {
				_ = k.tried(unavailable(&cryptoki.AbandonedError{Call: "C_Login"}, "log in"))
			}
			k.counts.FailedLate.Store(cryptoki.LoginFault("1234", TokenID{},
				pkcs11.Error(pkcs11.CKR_GENERAL_ERROR)))
			began := time.Now()
			for k.mayTry() != nil {
				<-time.After(time.Second)
			}
			if waited := time.Since(began); waited != want {
				t.Errorf("one waited for %s, want %s", waited, want)
			}
		}
	})
}

// A login that never comes back is not made a second time, since it may have been one with a wrong
// PIN. Nobody waits for it longer than one waits after such a login; then the module hangs as it
// does with any other call.
func TestLoginThatNeverComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := aKey()
		never := make(chan struct{})
		defer close(never)
		login := func() error {
			return k.user.Do(t.Context(), "C_Login", func(*pkcs11.Ctx) error {
				k.counts.Logins.Add(1)
				<-never
				return nil
			})
		}
		began, waited := time.Now(), time.Duration(0)
		for err := login(); !errors.Is(err, ErrHung); err = k.tried(login()) {
			if waited = time.Since(began); waited > 2*cryptoki.LastLoginRetry {
				t.Fatalf("it is waited for after %s: %v", waited, err)
			}
			<-time.After(time.Until(k.notYet))
		}
		if waited < cryptoki.LastLoginRetry || k.counts.Logins.Load() != 1 {
			t.Errorf("one gave up after %s and %d logins", waited, k.counts.Logins.Load())
		}
	})
}
