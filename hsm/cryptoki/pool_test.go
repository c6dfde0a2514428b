package cryptoki

import (
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/internal/must"
)

// Sessions are counted with the login session, which a token that has no other signs with.
func TestSessionsAreCounted(t *testing.T) {
	p := newPool(&Connection{loginSession: 1}, 4, 4)
	require := func(when string, want Sessions) {
		t.Helper()
		if got := p.counts(); got != want {
			t.Errorf("%s: %+v, want %+v", when, got, want)
		}
	}
	require("at first", Sessions{Open: 1, Most: 4})
	p.open, p.idle = map[pkcs11.SessionHandle]bool{2: true, 3: true}, []pkcs11.SessionHandle{2, 3}
	require("two are idle", Sessions{Open: 3, Most: 4})
	session, err := p.acquire(t.Context(), time.Second)
	must.OK(t, err)
	require("one signs", Sessions{Open: 3, InUse: 1, Most: 4})
	p.release(session, 0)
	require("it came back", Sessions{Open: 3, Most: 4})
	session, err = p.acquire(t.Context(), time.Second)
	must.OK(t, err)
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

// Sessions grow to half of those that are free, and not without a limit that is known.
func TestGrowthLimit(t *testing.T) {
	for _, c := range []struct {
		token, open uint
		want        int
	}{
		{effectivelyInfinite, notKnown, 64}, {notKnown, 0, 16}, {1024, 0, 64}, {100, 0, 49},
		{100, 20, 39}, {100, notKnown, 49}, {100, 200, 16}, {20, 0, 16}, {8, 0, 7}, {1, 1, 1},
	} {
		first := sessionLimit(firstSessions, c.token)
		if got := growthLimit(first, c.token, c.open); got != c.want {
			t.Errorf("a token that allows %d and has %d open: %d, want %d", c.token, c.open, got,
				c.want)
		}
	}
}

// More sessions are used only if all are in use and signatures are slow.
func TestSessionsGrowIfSignaturesAreSlow(t *testing.T) {
	p := newPool(&Connection{loginSession: 1}, 2, 3)
	p.open = map[pkcs11.SessionHandle]bool{2: true, 3: true, 4: true}
	p.idle = []pkcs11.SessionHandle{2, 3, 4}
	var held []pkcs11.SessionHandle
	requireSigning := func(when string, want int) {
		t.Helper()
		for err := error(nil); err == nil; {
			var session pkcs11.SessionHandle
			if session, err = p.acquire(t.Context(), 0); err == nil {
				held = append(held, session)
			}
		}
		if got := p.counts().Most; len(held) != want || got != want {
			t.Errorf("%s: %d sessions sign, and %d may; want %d", when, len(held), got, want)
		}
	}
	requireSigning("signatures are fast", 2)
	for range 100 {
		p.release(held[0], 2*slowSignature)
		must.OK(t, second(p.acquire(t.Context(), 0)))
	}
	requireSigning("signatures are slow", 3)
}

func second[T any](_ T, err error) error { return err }
