package cryptoki

import (
	"testing"

	"github.com/miekg/pkcs11"
)

// Sessions are counted with the login session, which a token that has no other signs with.
func TestSessionsAreCounted(t *testing.T) {
	p := newPool(&Connection{loginSession: 1}, 4)
	require := func(when string, want Sessions) {
		t.Helper()
		if got := p.counts(); got != want {
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

func TestSessionLimitKeepsOneForTheLogin(t *testing.T) {
	for _, c := range []struct {
		wanted int
		token  uint
		want   int
	}{
		{16, 0, 16}, {16, ^uint(0), 16}, {4, 0, 4}, {16, 8, 7}, {4, 8, 4}, {64, 8, 7}, {16, 2,
			1}, {16, 1, 1},
	} {
		if got := sessionLimit(c.wanted, c.token); got != c.want {
			t.Errorf("wanted %d of a token that allows %d: %d, want %d", c.wanted, c.token, got,
				c.want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
