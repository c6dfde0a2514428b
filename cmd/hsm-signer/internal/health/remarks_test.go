package health

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// /readyz and the remarks say since when a part is at fault, whatever the fault is meanwhile.
func TestSinceWhenAPartIsAtFault(t *testing.T) {
	h := newTestHealth(t)
	c, token := h.Controller.(*testController), h.Signing.Token.(*testPart)
	since := time.Unix(1e9, 0)
	require := func(step, want string) {
		t.Helper()
		if _, body := readyz(h); !strings.Contains(body, want) {
			t.Errorf("%s: %q is missing: %s", step, want, body)
		}
	}
	requireLease := func(want time.Time) {
		t.Helper()
		for _, p := range h.Remarks() {
			if p.Name == "lease" && !p.Since.Equal(want) {
				t.Errorf("no lease since %s; want %s", p.Since, want)
			}
		}
	}
	require("well", "[+] token ok")
	require("nothing open", "open requests: not counted")
	requireLease(time.Time{})
	token.err = errors.New("it is gone")
	h.Parts()
	h.faults.since["token"] = since
	token.err = errors.New("the token was removed")
	require("another fault",
		"[-] token: the token was removed (since "+since.UTC().Format(time.RFC3339)+")")
	token.err = nil
	require("well again", "[+] token ok")
	c.stands = true
	h.Remarks()
	h.faults.since["lease"] = since
	require("no leader", "leads false")
	requireLease(since)
	c.leader = "b"
	require("another leads", "leads false")
	requireLease(time.Time{})
}

func TestTheFirstFaultCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f faultTimes
		faulty := []Part{{Name: "a", Err: errors.New("x")}}
		first := f.note(faulty)[0].Since
		<-time.After(time.Minute)
		if again := f.note(faulty)[0].Since; first.IsZero() || !again.Equal(first) {
			t.Errorf("%s, then %s", first, again)
		}
		f.note([]Part{{Name: "a"}})
		if fresh := f.note(faulty)[0].Since; !fresh.After(first) {
			t.Errorf("%s after recovery", fresh)
		}
	})
}
