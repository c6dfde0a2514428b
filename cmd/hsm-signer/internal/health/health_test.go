package health

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/hsm"
	"hsm-signer/internal/must"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
)

// testController watches requests, has all permissions, and leads without an election, unless its
// fields say otherwise.
type testController struct {
	stands bool   // by
	leader string // of many
	open   kube.Open
}

func (c *testController) Ready() error     { return nil }
func (c *testController) Permitted() error { return nil }
func (c *testController) Leads() bool      { return !c.stands }
func (c *testController) Leader() string   { return c.leader }
func (c *testController) Open() kube.Open  { return c.open }

// A testFile is a file of the configuration with that state, which is not refused.
type testFile string

func (f testFile) State() string  { return string(f) }
func (f testFile) Refusal() error { return nil }

// A refusedFile has a mistake.
type refusedFile struct{}

func (refusedFile) State() string  { return "in force x" }
func (refusedFile) Refusal() error { return errors.New("line 3") }

// A testJournal has that state.
type testJournal struct {
	state, suspicion error
}

func (j *testJournal) State() error     { return j.state }
func (j *testJournal) Suspicion() error { return j.suspicion }

// A testPart has that fault.
type testPart struct{ err error }

func (p *testPart) Fault() error { return p.err }

// A testOther is the key that does not sign now.
type testOther struct {
	exists bool
	err    error
}

func (o testOther) Fault() (exists bool, err error) { return o.exists, o.err }

// A testCA signs.
type testCA struct{ ca *issuer.CA }

func (c testCA) CA() *issuer.CA { return c.ca }

// newTestHealth is well in all parts.
func newTestHealth(t *testing.T) *Health {
	t.Helper()
	ca, err := issuer.ParseCA(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: fixture.NewCA(t).Certificate.Raw}))
	must.OK(t, err)
	j := &testJournal{}
	return &Health{
		Credential: credentials{},
		Controller: &testController{}, Policy: testFile("in force x"), CA: testFile(""),
		Signing: &Signing{
			Token: &testPart{}, Other: testOther{}, Issuer: testCA{ca}, Journal: j, Witness: j,
			Phase: testPhase{},
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
	for want, phase := range map[string]testPhase{
		"":                                       {},
		"[+] rotation ok: trusted since":         {summary: "trusted since"},
		"[-] rotation: the lease is malformed (": {fault: errors.New("the lease is malformed")},
	} {
		h.Signing.Phase = phase
		ready, text := readyz(h)
		if ready != (phase.fault == nil) || h.Signing.Fit() != nil ||
			strings.Contains(text, "rotation") != (want != "") || !strings.Contains(text, want) {
			t.Errorf("%+v: %t\n%s", phase, ready, text)
		}
	}
}

// With pod certificates, a clock that is wrong makes the process unready, but does not keep it from
// leading: other requests are answered.
func TestClockIsAPart(t *testing.T) {
	h := newTestHealth(t)
	if _, text := readyz(h); strings.Contains(text, "clock") {
		t.Errorf("without pod certificates: %s", text)
	}
	for _, fault := range []error{nil, errors.New("is 5m0s ahead")} {
		h.Signing.Clock = &testPart{fault}
		ready, text := readyz(h)
		if ready != (fault == nil) || h.Signing.Fit() != nil ||
			fault != nil && !strings.Contains(text, "[-] clock: is 5m0s ahead (since ") {
			t.Errorf("%v: %t\n%s", fault, ready, text)
		}
	}
}

// readyz returns the state of health for /readyz.
func readyz(h *Health) (ready bool, text string) {
	var b strings.Builder
	ready = h.Report(&b, "")
	return ready, b.String()
}

func TestReadyzSaysWhichPartIsNotReady(t *testing.T) {
	h := newTestHealth(t)
	signs := h.Signing
	h.Signing = nil
	if ready, body := readyz(h); !ready || strings.Contains(body, "token") ||
		!strings.Contains(body, "policy in force x") {
		t.Errorf("a shadow: %t %s", ready, body)
	}
	h.Signing = signs
	token, j := signs.Token.(*testPart), signs.Journal.(*testJournal)
	for _, c := range []struct {
		prepare func()
		ready   bool
		want    string
	}{
		{func() { token.err = errors.New("not looked at yet") }, false,
			"[-] token: not looked at yet"},
		{func() { token.err = errors.Join(errors.New("one"), errors.New("two")) }, false,
			"[-] token: one; two (since"},
		{func() { token.err = nil }, true, "[+] token ok"},
		{func() { token.err = fmt.Errorf("%w: the journal is not open", hsm.ErrUnproven) }, true,
			"[+] token ok: no test signature was made"},
		{func() { token.err = nil; h.CA = testFile("but it is refused") }, true,
			"[+] ca ok: but it is refused"},
		{func() { j.state = journal.ErrLocked }, false, "[-] journal: the journal is in use"},
		{func() { signs.Standby = true }, true, "[+] journal ok: this process stands by"},
		{func() { token.err = errors.New("it is gone") }, false, "[-] token: it is gone"},
	} {
		c.prepare()
		if ready, body := readyz(h); ready != c.ready || !strings.Contains(body, c.want) {
			t.Errorf("%t %s; want %t and %q", ready, body, c.ready, c.want)
		}
	}
}

// A fault of the key that does not sign now is shown, and keeps nobody from serving or leading.
func TestKeyThatDoesNotSignKeepsNobody(t *testing.T) {
	for want, other := range map[string]testOther{
		"":                                      {},
		"does not sign now: its key could sign": {exists: true},
		"does not sign now: gone":               {true, errors.New("gone")},
	} {
		h := newTestHealth(t)
		h.Signing.Other = other
		ready, text := readyz(h)
		if !ready || h.Signing.Fit() != nil ||
			strings.Contains(text, "does not sign now") != (want != "") ||
			!strings.Contains(text, want) {
			t.Errorf("%+v: %t\n%s", other, ready, text)
		}
	}
}

// The state is one line, whatever the fault.
func TestStateIsOneLine(t *testing.T) {
	h := newTestHealth(t)
	token, c := h.Signing.Token.(*testPart), h.Controller.(*testController)
	for _, step := range []struct {
		prepare func()
		want    string
	}{
		{func() {}, "ready"},
		{func() { token.err = errors.New("two\nlines") }, "not ready: token: two; lines"},
		{func() { token.err = nil }, "ready"},
		{func() { c.stands = true }, "ready, and stands by"},
	} {
		step.prepare()
		if state := h.State(); state != step.want {
			t.Errorf("%q; want %q", state, step.want)
		}
	}
}

// A refused file of the next CA is named, with the CA that it is configured for.
func TestReadyzNamesTheFileOfTheNextCA(t *testing.T) {
	h := newTestHealth(t)
	var text bytes.Buffer
	for want, file := range map[string]File{
		"": testFile(""),
		"pods/next CA: NEXT_CA_CERT_FILE in its present form is refused, and the certificate " +
			"before it stays in use: line 3\n": refusedFile{},
	} {
		h.NextCA = file
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
	j, now := h.Signing.Journal.(*testJournal), time.Now()
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
		if err := h.Signing.journalFit(now.Add(c.after)); (err == nil) != c.fit {
			t.Errorf("%v after %s: %v", c.err, c.after, err)
		}
		if ready, _ := readyz(h); ready != (c.err == nil) {
			t.Errorf("%v: readyz %t", c.err, ready)
		}
	}
}

// /readyz says what to do about a journal that was rolled back, and what a witness makes suspect.
func TestReadyzTellsOfARollback(t *testing.T) {
	h := newTestHealth(t).Signing
	j := h.Journal.(*testJournal)
	j.state = fmt.Errorf("%w: line 7 is missing", journal.ErrRolledBack)
	if p := h.journalPart(); p.Err == nil ||
		!strings.Contains(p.Err.Error(), "line 7 is missing") ||
		!strings.Contains(p.Err.Error(), "accept-rollback") {
		t.Errorf("%+v", p)
	}
	j.state, j.suspicion = nil, errors.New("a later head")
	if p := h.journalPart(); p.Err != nil || !strings.Contains(p.Note, "a later head") {
		t.Errorf("%+v", p)
	}
}
