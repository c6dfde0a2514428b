package cryptoki

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

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
	l, err := Load(t.Context(), Config{Module: module, Timeout: time.Millisecond}, &n)
	if !errors.Is(err, ErrUnavailable) || l == nil || n.Hanging.Load() != 1 ||
		l.Close(t.Context()) {
		t.Fatalf("library %v, %d calls hang: %v", l, n.Hanging.Load(), err)
	}
	must.OK(t, os.WriteFile(release, nil, 0o600))
	for !l.Close(t.Context()) {
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
	m := New(Config{PIN: PIN("1234").Fixed(), Timeout: time.Second}, &Counts{})
	m.loggingIn = time.Now()
	if err := NewConnection(m).login(t.Context()); !errors.Is(err, ErrUnavailable) ||
		m.MayKnowAnother("other") || m.counts.Logins.Load() != 0 {
		t.Errorf("%v; %d logins; the PIN counts as tried: %t", err, m.counts.Logins.Load(),
			m.MayKnowAnother("other"))
	}
}
