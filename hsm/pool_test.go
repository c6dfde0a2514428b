package hsm

import (
	"testing"

	"github.com/miekg/pkcs11"
)

// Sessions are counted with the login session, which a token that has no other signs with.
func TestSessionsAreCounted(t *testing.T) {
	p := newPool(&connection{loginSession: 1}, 4)
	require := func(when string, want Sessions) {
		t.Helper()
		if got := p.sessions(); got != want {
			t.Errorf("%s: %+v, want %+v", when, got, want)
		}
	}
	require("at first", Sessions{Open: 1, Most: 4})
	p.open, p.idle = map[pkcs11.SessionHandle]bool{2: true, 3: true}, []pkcs11.SessionHandle{2, 3}
	require("two are idle", Sessions{Open: 3, Most: 4})
	session, err := p.acquire(t.Context())
	must(t, err)
	require("one signs", Sessions{Open: 3, InUse: 1, Most: 4})
	p.release(session)
	require("it came back", Sessions{Open: 3, Most: 4})
	session, err = p.acquire(t.Context())
	must(t, err)
	p.forget(session)
	require("a call hangs in it", Sessions{Open: 2, Most: 4})
	p.open, p.idle = map[pkcs11.SessionHandle]bool{1: true}, nil
	require("the login session signs", Sessions{Open: 1, InUse: 1, Most: 4})
}
