package daemon

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/hsm"
	"hsm-signer/internal/must"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
	"hsm-signer/kube/pace"
)

// testController watches requests, has all permissions, and leads without an election, unless its
// fields say otherwise.
type testController struct {
	stands     bool   // by
	leader     string // of many
	pace       pace.State
	cleanFault error
	open       kube.Open
}

func (c *testController) Ready() error        { return nil }
func (c *testController) Permitted() error    { return nil }
func (c *testController) Leads() bool         { return !c.stands }
func (c *testController) Leader() string      { return c.leader }
func (c *testController) Open() kube.Open     { return c.open }
func (c *testController) Queued() int         { return 0 }
func (c *testController) Pace() pace.State    { return c.pace }
func (c *testController) CleanUpFault() error { return c.cleanFault }

// A testFile is a file of the configuration with that state, which is not refused.
type testFile string

func (f testFile) State() string  { return string(f) }
func (f testFile) Refusal() error { return nil }

// A testJournal has that state.
type testJournal struct {
	state, suspicion error
}

func (j *testJournal) State() error     { return j.state }
func (j *testJournal) Suspicion() error { return j.suspicion }

// testKey gives the results of its fields.
type testKey struct {
	healthy       error
	attributes    hsm.KeyAttributes
	attributesErr error
}

func (k *testKey) Healthy(context.Context) error { return k.healthy }

func (k *testKey) Attributes(context.Context) (hsm.KeyAttributes, error) {
	return k.attributes, k.attributesErr
}

// newTestHealth is well in all parts but the token, which was not looked at.
func newTestHealth(t *testing.T) *health {
	t.Helper()
	ca, err := issuer.ParseCA(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: fixture.NewCA(t).Certificate.Raw}))
	must.OK(t, err)
	j := &testJournal{}
	return &health{
		credential: credentials{},
		controller: &testController{}, policy: testFile("in force x"), caFile: testFile(""),
		signing: &signingHealth{
			token: newTokenWatch(&testKey{}, nil, nil, false, hclog.NewNullLogger()),
			ca:    fixedCA{ca}, journal: j, witness: j, phase: testPhase{},
		},
	}
}

// A testPhase is that of a rotation of the CA; the zero one is none.
type testPhase struct {
	fault   error
	summary string
}

func (p testPhase) Unclear() error { return p.fault }

func (p testPhase) Summary() string { return p.summary }

// A rotation of the CA is shown while there is one. If its phase is not clear, the process is not
// ready; but it stands for election, since only then it reads the lease.
func TestRotationIsAPart(t *testing.T) {
	h := newTestHealth(t)
	h.signing.token.note(nil)
	for want, phase := range map[string]testPhase{
		"":                                       {},
		"[+] rotation ok: trusted since":         {summary: "trusted since"},
		"[-] rotation: the lease is malformed (": {fault: errors.New("the lease is malformed")},
	} {
		h.signing.phase = phase
		code, text := readyz(h)
		if (code == http.StatusOK) != (phase.fault == nil) || h.signing.Fit() != nil ||
			strings.Contains(text, "rotation") != (want != "") || !strings.Contains(text, want) {
			t.Errorf("%+v: %d\n%s", phase, code, text)
		}
	}
}

// A testClock has that fault.
type testClock struct{ error }

func (c testClock) Fault() error { return c.error }

// With pod certificates, a clock that is wrong makes the process unready, but does not keep it from
// leading: other requests are answered.
func TestClockIsAPart(t *testing.T) {
	h := newTestHealth(t)
	h.signing.token.note(nil)
	if _, text := readyz(h); strings.Contains(text, "clock") {
		t.Errorf("without pod certificates: %s", text)
	}
	for _, fault := range []error{nil, errors.New("is 5m0s ahead")} {
		h.signing.clock = testClock{fault}
		code, text := readyz(h)
		if (code == http.StatusOK) != (fault == nil) || h.signing.Fit() != nil ||
			fault != nil && !strings.Contains(text, "[-] clock: is 5m0s ahead (since ") {
			t.Errorf("%v: %d\n%s", fault, code, text)
		}
	}
}

func readyz(h *health) (int, string) {
	w := httptest.NewRecorder()
	new(Group).readyz(w, &Daemon{service: &config.Service{Config: &config.Config{}}, health: h})
	return w.Code, w.Body.String()
}

// The attributes of each key are logged once, as soon as the token gives them.
func TestEachKeyThatCanLeaveIsLoggedOnce(t *testing.T) {
	extractable := hsm.KeyAttributes{Attributes: []hsm.Attribute{{Name: "CKA_EXTRACTABLE", Is: true,
		Known: true, Must: true}}}
	safe := hsm.KeyAttributes{Attributes: []hsm.Attribute{{Name: "CKA_EXTRACTABLE", Known: true,
		Must: true}}}
	var log bytes.Buffer
	ca, checkpoints := &testKey{attributes: safe}, &testKey{attributes: extractable}
	token := newTokenWatch(ca, []*loggedKey{{name: "the CA's key", key: ca},
		{name: "the checkpoint key", key: checkpoints}}, nil, false,
		hclog.New(&hclog.LoggerOptions{Output: &log}))
	for n, c := range []struct {
		healthy, attributesErr error
		want                   int // lines in the log
	}{
		{errors.New("the token is away"), nil, 0},
		{nil, errors.New("a fault"), 0},
		{fmt.Errorf("%w: x", hsm.ErrUnproven), nil, 1},
		{nil, nil, 1},
	} {
		ca.healthy, checkpoints.attributesErr = c.healthy, c.attributesErr
		if err := token.look(t.Context()); err != c.healthy {
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
	signs := h.signing
	h.signing = nil
	if code, body := readyz(h); code != 200 || strings.Contains(body, "token") ||
		!strings.Contains(body, "policy in force x") {
		t.Errorf("a shadow: %d %s", code, body)
	}
	h.signing = signs
	token, j := signs.token, signs.journal.(*testJournal)
	for _, c := range []struct {
		prepare func()
		code    int
		want    string
	}{
		{func() {}, 503, "[-] token: not looked at yet"},
		{func() { token.note(nil) }, 200, "[+] token ok"},
		{func() { token.note(fmt.Errorf("%w: the journal is not open", hsm.ErrUnproven)) }, 200,
			"[+] token ok: no test signature was made"},
		{func() { token.note(nil); h.caFile = testFile("but it is refused") }, 200,
			"[+] ca ok: but it is refused"},
		{func() { j.state = journal.ErrLocked }, 503, "[-] journal: the journal is in use"},
		{func() { signs.standby = true }, 200, "[+] journal ok: this process stands by"},
		{func() { token.note(errors.New("it is gone")) }, 503, "[-] token: it is gone"},
		{func() { token.note(nil); token.began = time.Now().Add(-time.Minute) }, 503,
			"its module hangs"},
	} {
		c.prepare()
		if code, body := readyz(h); code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%d %s; want %d and %q", code, body, c.code, c.want)
		}
	}
}

// The state is one line, whatever the fault.
func TestStateIsOneLine(t *testing.T) {
	h := newTestHealth(t)
	token, c := h.signing.token, h.controller.(*testController)
	for _, step := range []struct {
		prepare func()
		want    string
	}{
		{func() {}, "not ready: token: not looked at yet"},
		{func() { token.note(errors.New("two\nlines")) }, "not ready: token: two lines"},
		{func() { token.note(nil) }, "ready"},
		{func() { c.stands = true }, "ready, and stands by"},
	} {
		step.prepare()
		if state := h.state(); state != step.want {
			t.Errorf("%q; want %q", state, step.want)
		}
	}
}

// A refused file of the next CA is named, with the CA that it is configured for.
func TestReadyzNamesTheFileOfTheNextCA(t *testing.T) {
	h := newTestHealth(t)
	var text bytes.Buffer
	for want, file := range map[string]file{
		"": testFile(""),
		"pods/next CA: NEXT_CA_CERT_FILE in its present form is refused, and the certificate " +
			"before it stays in use: line 3\n": refusedFile{},
	} {
		h.nextFile = file
		text.Reset()
		if h.writeNext(&text, "pods/"); text.String() != want {
			t.Errorf("%q; want %q", &text, want)
		}
	}
}

// A journal at its limit lets another lead. With too many unfinished requests it stands again after
// a while, since only who leads can publish them; with any other fault it does not.
func TestJournalAtItsLimitIsUnfit(t *testing.T) {
	h := newTestHealth(t)
	h.signing.token.note(nil)
	j, now := h.signing.journal.(*testJournal), time.Now()
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
		j.state = c.err
		if err := h.signing.journalFit(now.Add(c.after)); (err == nil) != c.fit {
			t.Errorf("%v after %s: %v", c.err, c.after, err)
		}
		if code, _ := readyz(h); (code == 200) != (c.err == nil) {
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
		token := newTokenWatch(&testKey{}, nil, nil, c.restarted, hclog.NewNullLogger())
		if got := token.ends(c.err, c.neverReady); got != c.ends {
			t.Errorf("%+v: %t", c, got)
		}
	}
}

// /readyz says what to do about a journal that was rolled back, and what a witness makes suspect.
func TestReadyzTellsOfARollback(t *testing.T) {
	h := newTestHealth(t).signing
	j := h.journal.(*testJournal)
	j.state = fmt.Errorf("%w: line 7 is missing", journal.ErrRolledBack)
	if p := h.journalPart(); p.err == nil ||
		!strings.Contains(p.err.Error(), "line 7 is missing") ||
		!strings.Contains(p.err.Error(), "accept-rollback") {
		t.Errorf("%+v", p)
	}
	j.state, j.suspicion = nil, errors.New("a later head")
	if p := h.journalPart(); p.err != nil || !strings.Contains(p.note, "a later head") {
		t.Errorf("%+v", p)
	}
}
