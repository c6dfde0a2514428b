package cryptoki

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/csign"
	"hsm-signer/internal/must"
)

// hanging is a library that does not let itself be loaded before there is a file.
const hanging = `
#include <unistd.h>
__attribute__((constructor)) static void hang(void) { while (access(%q, F_OK)) usleep(1000); }
`

// A module that hangs while it is loaded is not waited for, nor loaded again before that has come
// back.
func TestModuleThatHangsWhileItIsLoaded(t *testing.T) {
	dir := t.TempDir()
	module, source, release := filepath.Join(dir, "hanging.so"), filepath.Join(dir,
		"hanging.c"), filepath.Join(dir, "release")
	must.OK(t, os.WriteFile(source, fmt.Appendf(nil, hanging, release), 0o600))
	if out, err := exec.CommandContext(t.Context(), "cc", "-shared", "-fPIC", "-o", module,
		source).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var n Counts
	u := NewUser(Config{Module: module, Timeout: time.Millisecond}, &n)
	if err := u.Load(t.Context()); !errors.Is(err, ErrUnavailable) || n.Hanging.Load() != 1 ||
		u.Unload(t.Context(), true) {
		t.Fatalf("%d calls hang: %v", n.Hanging.Load(), err)
	}
	must.OK(t, os.WriteFile(release, nil, 0o600))
	for !u.Unload(t.Context(), true) {
		if t.Context().Err() != nil {
			t.Fatal("it has not come back")
		}
	}
	if n.Hanging.Load() != 0 || n.Initialised.Load() != 0 {
		t.Errorf("%d calls hang, initialised %d times", n.Hanging.Load(), n.Initialised.Load())
	}
}

// A login that was not made, since an earlier one may still count, has tried no PIN.
func TestLoginThatIsNotMadeTriesNothing(t *testing.T) {
	u := NewUser(Config{PIN: PIN("1234").Fixed(), Timeout: time.Second}, &Counts{})
	c := u.NewConnection()
	l := u.shared.loginsOf(c.loginKey())
	l.hang(time.Now())
	if err := c.login(t.Context()); !errors.Is(err, ErrUnavailable) ||
		l.triedAnother(u.on, "other") || u.counts.Logins.Load() != 0 {
		t.Errorf("%v; %d logins; the PIN counts as tried: %t", err, u.counts.Logins.Load(),
			l.triedAnother(u.on, "other"))
	}
}

// A user that needs the module initialised again waits while a connection of another one works, for
// longer each time. It does not wait for one that has had no answer since a suspect module failed.
func TestConnectionsOfOthersAreSpared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shared{users: map[*User]bool{}}
		needs, other := &User{shared: s}, &User{shared: s}
		s.users[needs], s.users[other] = true, true
		needs.Lost()
		other.Works()
		other.worked.Store(sinceStart(time.Now()) - 1)
		if s.spares(needs, true) || !s.spares(needs, false) {
			t.Error("without an answer since then, the suspect module is spared, or another is not")
		}
		s.spareUntil = time.Time{}
		<-time.After(time.Second)
		other.answered(nil)
		for _, want := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute,
			8 * time.Minute, 15 * time.Minute, 15 * time.Minute} {
			began := time.Now()
			for s.spares(needs, true) {
				<-time.After(time.Second)
			}
			if waited := time.Since(began); waited != want {
				t.Errorf("spared for %s; want %s", waited, want)
			}
		}
		other.Lost()
		if s.spares(needs, false) {
			t.Error("one without a connection is spared")
		}
	})
}

// While a module ends it takes no call. If a call in flight does not return, it takes calls again.
func TestModuleEndsWhenNoCallIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := NewUser(Config{Timeout: time.Second}, &Counts{})
		release, done := make(chan struct{}), make(chan error)
		go func() {
			done <- u.Do(t.Context(), "C_Sign", func(*pkcs11.Ctx) error { <-release; return nil })
		}()
		synctest.Wait()
		ended := make(chan bool)
		go func() { ended <- u.on.end(t.Context(), time.Second) }()
		synctest.Wait()
		if err := u.Do(t.Context(), "C_Sign", nil); !errors.Is(err, ErrEnded) {
			t.Errorf("a call began while the module ends: %v", err)
		}
		close(release)
		if err := <-done; err != nil || !<-ended {
			t.Errorf("the call in flight: %v", err)
		}
	})
}

// If the module hands out a session that another connection has, it has lost that one's sessions:
// the other signs in none of them any more, and closes none that is not its own.
func TestSessionsThatTheModuleHasLost(t *testing.T) {
	m := &module{owners: map[pkcs11.SessionHandle]*Connection{}}
	u := NewUser(Config{Timeout: time.Second}, &Counts{})
	before, after := &Connection{caller: caller{u, m}}, &Connection{caller: caller{u, m}}
	m.own(1, before)
	m.own(2, before)
	m.own(1, after)
	if _, err := before.signOn(t.Context(), 2, csign.Request{}); !errors.Is(err, errLost) ||
		after.lost.Load() {
		t.Errorf("%v; the new connection is lost: %t", err, after.lost.Load())
	}
	if err := before.closeSession(1); err != nil || !m.disown(1, after) {
		t.Errorf("the session of the new connection was closed: %v", err)
	}
}
