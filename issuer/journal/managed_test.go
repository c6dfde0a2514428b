package journal

import (
	"context"
	"errors"
	"testing"
	"time"

	"hsm-signer/internal/must"
)

// quiet drops what is logged.
type quiet struct{}

func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}

// refusing is a witness that does not let a journal be used.
type refusing struct {
	err   error
	shown int
}

func (r *refusing) Opened(*Writer) error {
	r.shown++
	return r.err
}

// A journal is there before it can be opened, and says why it cannot: nobody has tried, another
// process has it, or a witness objects. It is opened by the next look, and closed with the context.
func TestAJournalLooksAfterItself(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	options, witness := Options{CA: ca.cert}, &refusing{err: errors.New("a witness objects")}
	other := open(t, dir, options)
	j := New(dir, options, witness, quiet{})
	require := func(want error) {
		t.Helper()
		_, lookup := j.Lookup("u")
		for _, err := range []error{j.State(), j.Ready(), lookup,
			j.Append(t.Context(), Probe{When: ProbeReady})} {
			if !errors.Is(err, want) {
				t.Errorf("%v; want %v", err, want)
			}
		}
		if j.ID() != "" || j.Unpublished() != nil || j.Recent() != nil || j.RolledBack() != nil ||
			j.RefusalsDropped() != 0 {
			t.Error("it knows something before it is open")
		}
	}
	require(errNotTried)
	j.Refused(Decision{UID: "u"}) // there is no log for it yet
	j.look()
	require(ErrLocked)
	closeNow(t, other)
	j.look()
	require(witness.err)
	if witness.shown != 1 {
		t.Errorf("the witness was shown the journal %d times", witness.shown)
	}
	witness.err = nil

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- j.Run(ctx) }()
	<-j.Opened()
	issueInto(t, ca, j)
	j.Refused(Decision{UID: "refused"})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := j.Append(t.Context(), Probe{When: ProbeReady}); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	if found, err := Logged(dir, RefusalsLog, []string{"u", "refused"}); err != nil ||
		len(found) != 1 || !found["refused"] {
		t.Errorf("the log has %v, %v", found, err)
	}
	if s := verify(t, dir, ca); s.Counts.Published != 1 {
		t.Errorf("%+v", s)
	}
}

// issueInto writes the whole life of a certificate.
func issueInto(t *testing.T, ca *testCA, j *Journal) {
	t.Helper()
	intent, signed, published := ca.lines(t, j.ID(), "one", time.Hour)
	for _, e := range []Entry{intent, signed, published} {
		must.OK(t, j.Append(t.Context(), e))
	}
	if r, err := j.Lookup("one"); r.State != IsPublished || err != nil {
		t.Errorf("%s, %v", r.State, err)
	}
}
