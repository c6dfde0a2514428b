package hsm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
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
	if err := os.WriteFile(source, fmt.Appendf(nil, hanging, release), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "cc", "-shared", "-fPIC", "-o", module,
		source).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var n counts
	l, err := load(t.Context(), Config{Module: module, Timeout: time.Millisecond}, &n)
	if !errors.Is(err, ErrUnavailable) || l == nil || n.hanging.Load() != 1 ||
		l.close(t.Context()) {
		t.Fatalf("library %v, %d calls hang: %v", l, n.hanging.Load(), err)
	}
	if err := os.WriteFile(release, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for !l.close(t.Context()) {
		if t.Context().Err() != nil {
			t.Fatal("it has not come back")
		}
	}
	if n.hanging.Load() != 0 || n.initialised.Load() != 0 {
		t.Errorf("%d calls hang, initialised %d times", n.hanging.Load(), n.initialised.Load())
	}
}

// A login that never comes back is not made a second time, since it may have been one with a wrong
// PIN. Nobody waits for it longer than one waits after such a login; then the module hangs as it
// does with any other call.
func TestLoginThatNeverComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &Key{}
		k.module = &module{counts: &k.counts, most: 100}
		never := make(chan struct{})
		defer close(never)
		login := func() error {
			return k.module.do(t.Context(), time.Second, callLogin, func() error {
				k.counts.logins.Add(1)
				<-never
				return nil
			})
		}
		began, waited := time.Now(), time.Duration(0)
		for err := login(); !errors.Is(err, ErrHung); err = k.tried(login()) {
			if waited = time.Since(began); waited > 2*lastLoginRetry {
				t.Fatalf("it is waited for after %s: %v", waited, err)
			}
			<-time.After(time.Until(k.notYet))
		}
		if waited < lastLoginRetry || k.counts.logins.Load() != 1 {
			t.Errorf("one gave up after %s and %d logins", waited, k.counts.logins.Load())
		}
	})
}

// A login that was not made, since an earlier one may still count, has tried no PIN.
func TestLoginThatIsNotMadeTriesNothing(t *testing.T) {
	l := &module{counts: &counts{}, most: 100, loggingIn: time.Now()}
	c := &connection{module: l, timeout: time.Second}
	if err := c.login(t.Context(), Config{PIN: PIN("1234").Fixed()}); !errors.Is(err,
		ErrUnavailable) || l.mayKnowAnother("other") || l.counts.logins.Load() != 0 {
		t.Errorf("%v; %d logins; the PIN counts as tried: %t", err, l.counts.logins.Load(),
			l.mayKnowAnother("other"))
	}
}
