package daemon

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
)

// newTestHealth is well in all parts but the token.
func newTestHealth(t *testing.T) *health {
	t.Helper()
	h := newHealth(func() string { return "in force x" }, nil, hclog.NewNullLogger())
	h.requests = func() error { return nil }
	h.permits = func() error { return nil }
	h.journal = func() error { return nil }
	h.leads = func() bool { return true }
	ca, err := issuer.ParseCA(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: fixture.NewCA(t).Certificate.Raw}))
	if err != nil {
		t.Fatal(err)
	}
	h.ca, h.caFile = func() *issuer.CA { return ca }, func() string { return "" }
	return h
}

func readyz(h *health) (int, string) {
	w := httptest.NewRecorder()
	h.readyz(w, nil)
	return w.Code, w.Body.String()
}

// The attributes of each key are logged once, as soon as the token gives them.
func TestEachKeyThatCanLeaveIsLoggedOnce(t *testing.T) {
	extractable := hsm.KeyAttributes{Attributes: []hsm.Attribute{{Name: "CKA_EXTRACTABLE", Is: true,
		Known: true, Must: true}}}
	safe := hsm.KeyAttributes{Attributes: []hsm.Attribute{{Name: "CKA_EXTRACTABLE", Known: true,
		Must: true}}}
	var log bytes.Buffer
	h := newTestHealth(t)
	h.logger = hclog.New(&hclog.LoggerOptions{Output: &log})
	lookErr, attributesErr := errors.New("the token is away"), errors.New("a fault")
	keys := []*toldKey{
		{name: "the CA's key",
			attributes: func(context.Context) (hsm.KeyAttributes, error) { return safe, nil }},
		{name: "the checkpoint key",
			attributes: func(context.Context) (hsm.KeyAttributes, error) {
				return extractable,
					attributesErr
			}},
	}
	look := h.tellOnce(func(context.Context) error { return lookErr }, keys)
	for n, c := range []struct {
		lookErr, attributesErr error
		want                   int // lines in the log
	}{
		{lookErr, nil, 0}, {nil, attributesErr, 0}, {fmt.Errorf("%w: x", hsm.ErrUnproven), nil,
			1}, {nil, nil, 1},
	} {
		lookErr, attributesErr = c.lookErr, c.attributesErr
		if err := look(t.Context()); err != c.lookErr {
			t.Errorf("step %d: %v", n, err)
		}
		if strings.Count(log.String(), "\n") != c.want || c.want == 1 &&
			!strings.Contains(log.String(), "[ERROR] THE CHECKPOINT KEY CAN LEAVE ITS TOKEN") {
			t.Errorf("step %d: want %d lines:\n%s", n, c.want, log.String())
		}
	}
}

func TestReadyzSaysWhichPartIsNotReady(t *testing.T) {
	h := newTestHealth(t)
	if code, body := readyz(h); code != 200 || strings.Contains(body, "token") ||
		!strings.Contains(body, "policy in force x") {
		t.Errorf("a shadow: %d %s", code, body)
	}
	h.token = func(context.Context) error { return nil }
	for _, c := range []struct {
		prepare func()
		code    int
		want    string
	}{
		{func() {}, 503, "[-] token: not looked at yet"},
		{func() { h.note(nil) }, 200, "[+] token ok"},
		{func() { h.note(fmt.Errorf("%w: the journal is not open", hsm.ErrUnproven)) }, 200,
			"[+] token ok: no test signature was made"},
		{func() { h.note(nil); h.caFile = func() string { return "but it is refused" } }, 200,
			"[+] ca ok: but it is refused"},
		{func() { h.journal = func() error { return journal.ErrLocked } }, 503,
			"[-] journal: the journal is in use"},
		{func() { h.standby = true }, 200, "[+] journal ok: this process stands by"},
		{func() { h.note(errors.New("it is gone")) }, 503, "[-] token: it is gone"},
		{func() { h.note(nil); h.began = time.Now().Add(-time.Minute) }, 503, "its module hangs"},
	} {
		c.prepare()
		if code, body := readyz(h); code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%d %s; want %d and %q", code, body, c.code, c.want)
		}
	}
}

// A journal at its limit lets another lead. With too many unfinished requests it stands again after
// a while, since only who leads can publish them; with any other fault it does not.
func TestJournalAtItsLimitIsUnfit(t *testing.T) {
	h := newTestHealth(t)
	now := time.Now()
	for _, c := range []struct {
		err   error
		after time.Duration
		fit   bool
	}{
		{nil, 0, true},
		{journal.ErrTooMany, 0, false},
		{journal.ErrTooMany, 90 * time.Second, false},
		{journal.ErrTooManyUnfinished, 100 * time.Second, false},
		{journal.ErrTooManyUnfinished, 159 * time.Second, false},
		{journal.ErrTooManyUnfinished, 161 * time.Second, true},
		{errors.Join(journal.ErrFull, journal.ErrTooManyUnfinished), 162 * time.Second, false},
		{journal.ErrTooManyUnfinished, 163 * time.Second, false},
		{nil, 164 * time.Second, true},
	} {
		h.journal = func() error { return c.err }
		if err := h.journalFit(now.Add(c.after)); (err == nil) != c.fit {
			t.Errorf("%v after %s: %v", c.err, c.after, err)
		}
		if code, _ := readyz(h); h.token != nil && (code == 200) != (c.err == nil) {
			t.Errorf("%v: readyz %d", c.err, code)
		}
	}
}

// A refused PIN ends the process, but not in a pod, which would be started again.
func TestWhatEndsTheProcess(t *testing.T) {
	for _, c := range []struct {
		err                   error
		restarted, neverReady bool
		ends                  bool
	}{
		{hsm.ErrPIN, false, false, true},
		{hsm.ErrPIN, true, true, false},
		{hsm.ErrKey, true, true, true},
		{hsm.ErrKey, false, false, false},
		{hsm.ErrUnavailable, false, true, false},
		{hsm.ErrHung, true, false, true},
		{nil, false, true, false},
	} {
		h := newTestHealth(t)
		h.restarted = c.restarted
		if got := h.ends(c.err, c.neverReady); got != c.ends {
			t.Errorf("%+v: %t", c, got)
		}
	}
}

// /readyz says what to do about a journal that was rolled back, and what a witness makes suspect.
func TestReadyzTellsOfARollback(t *testing.T) {
	h := newTestHealth(t)
	h.journal = func() error { return fmt.Errorf("%w: line 7 is missing", journal.ErrRolledBack) }
	if p := h.journalPart(); p.err == nil ||
		!strings.Contains(p.err.Error(), "line 7 is missing") ||
		!strings.Contains(p.err.Error(), "accept-rollback") {
		t.Errorf("%+v", p)
	}
	h.journal, h.suspicion = func() error { return nil }, func() error { return errors.New("a later head") }
	if p := h.journalPart(); p.err != nil || !strings.Contains(p.note, "a later head") {
		t.Errorf("%+v", p)
	}
}
