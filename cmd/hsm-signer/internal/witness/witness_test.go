package witness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/audit"
	"hsm-signer/cmd/hsm-signer/internal/cli/clitest"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/rollback"
	"hsm-signer/hsm"
	"hsm-signer/internal/must"
	"hsm-signer/issuer/journal"
)

// A reopened journal is one that runs, with its witness.
type reopened struct {
	*journal.Journal
	*Keeper
	stop func()
}

// reopen has the journal in DIR/state run as "run" does.
func reopen(t *testing.T, ca fixture.CA, dir, file string) reopened {
	t.Helper()
	state, logger := filepath.Join(dir, "state"), hclog.NewNullLogger()
	w := New(state, file, nil, logger)
	j := journal.New(state, journal.Options{CA: ca.Certificate}, w, logger)
	r := reopened{j, NewKeeper(w, nil), poll.Start(j.Run)}
	t.Cleanup(r.stop)
	<-j.Opened()
	return r
}

// cutLine removes the last line of the journal.
func cutLine(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "state", "journal-00000001.jsonl")
	text, err := os.ReadFile(path)
	must.OK(t, err)
	must.OK(t, os.WriteFile(path, text[:bytes.LastIndexByte(text[:len(text)-1], '\n')+1],
		0o600))
}

// A journal that was cut by one line signs nothing, whichever witness knows the line, until that is
// accepted.
func TestAJournalCutByOneLineStops(t *testing.T) {
	for _, by := range []string{"lease", "lease of an earlier version", "file"} {
		t.Run(by, func(t *testing.T) {
			dir, file := t.TempDir(), ""
			if by == "file" {
				file = filepath.Join(t.TempDir(), "witness")
			}
			ca := fixture.NewCA(t)
			ca.OpenJournal(t, dir).Close()
			k := reopen(t, ca, dir, file)
			ca.Issue(t, k.Writer(), "a", time.Hour)
			lease := k.Annotations()
			if by == "lease of an earlier version" {
				maps.DeleteFunc(lease,
					func(name, _ string) bool { return strings.HasPrefix(name, annotationPrefix) })
			}
			seen := k.Writer().Head()
			k.stop()
			k.Finish()
			look := func() reopened {
				k := reopen(t, ca, dir, file)
				if by != "file" {
					if err := k.Heard(lease); err != nil && !errors.Is(err, journal.ErrRolledBack) {
						t.Fatal(err)
					}
				}
				return k
			}
			if k = look(); k.State() != nil {
				t.Errorf("nothing was cut: %v", k.State())
			}
			k.stop()
			cutLine(t, dir) // it says that the journal was opened
			if k = look(); k.State() != nil {
				t.Errorf("only what no witness knows was cut: %v", k.State())
			}
			k.stop()
			cutLine(t, dir)
			cutLine(t, dir) // which the witness has seen
			k = look()
			if err := k.State(); !errors.Is(err, journal.ErrRolledBack) ||
				!strings.Contains(err.Error(), seen.String()) {
				t.Fatalf("after a cut: %v", err)
			}
			if said := k.Annotations(); said != nil {
				t.Errorf("the witness is told another head: %v", said)
			}
			ready := func() error {
				return k.Append(t.Context(),
					journal.Probe{When: "ready", Text: hsm.ProbeText})
			}
			if err := ready(); !errors.Is(err, journal.ErrRolledBack) {
				t.Errorf("a test signature: %v", err)
			}
			t.Setenv("CA_CERT_FILE", filepath.Join(dir, "ca.crt"))
			out, stderr, code := command(t, "audit", "accept-rollback", "--head", seen.String(),
				filepath.Join(dir, "state"))
			if code != 0 || !strings.Contains(out, "hsm-signer is running") {
				t.Fatalf("exit code %d: %s%s", code, out, stderr)
			}
			k.accept(t.Context())
			if err := errors.Join(k.State(), ready()); err != nil || !k.Writer().Accepted(seen) {
				t.Errorf("after it was accepted: %v", err)
			}
			k.accept(t.Context()) // there is nothing more
			k.stop()
			if k = look(); k.State() != nil {
				t.Errorf("accepted, and started again: %v", k.State())
			}
			out, stderr, code = command(t, "audit", "verify", filepath.Join(dir, "state"))
			if code != 0 || !strings.Contains(out, "1 times someone accepted") {
				t.Errorf("exit code %d: %s%s", code, out, stderr)
			}
		})
	}
}

// While hsm-signer does not run, the command itself records what is accepted; what is not missing
// cannot be accepted.
func TestAcceptRollbackWhileNothingRuns(t *testing.T) {
	dir := fixture.Journal(t, time.Hour)
	state := filepath.Join(dir, "state")
	t.Setenv("CA_CERT_FILE", filepath.Join(dir, "ca.crt"))
	head := fmt.Sprintf("99:%064d", 7)
	for range 2 { // also twice
		if out, stderr, code := command(t, "audit", "accept-rollback", "--head", head,
			state); code != 0 || !strings.Contains(out, "records that 99:") {
			t.Errorf("exit code %d: %s%s", code, out, stderr)
		}
	}
	out, _, _ := command(t, "audit", "verify", "--output", "json", state)
	var summary journal.Summary
	if err := json.Unmarshal([]byte(out), &summary); err != nil || summary.Counts.Rollbacks != 1 {
		t.Errorf("%v: %s", err, out)
	}
	if _, stderr, code := command(t, "audit", "accept-rollback", "--head", summary.Head.String(),
		state); code != 1 || !strings.Contains(stderr, "nothing to accept") {
		t.Errorf("its own head: exit code %d: %s", code, stderr)
	}
	if _, stderr, code := command(t, "audit", "accept-rollback", state); code != 4 ||
		!strings.Contains(stderr, "--head") {
		t.Errorf("no head: exit code %d: %s", code, stderr)
	}
	if _, _, code := command(t, "audit", "accept-rollback", "--head", head,
		filepath.Join(dir, "nowhere")); code != 1 {
		t.Errorf("no journal: exit code %d", code)
	}
	if _, err := os.Stat(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("a journal was made")
	}
}

// Where there is a key for checkpoints, what it has not signed raises the alert and stops nothing.
func TestOnlyASignedWitnessStops(t *testing.T) {
	dir := t.TempDir()
	ca := fixture.NewCA(t)
	ca.OpenJournal(t, dir).Close()
	k := reopen(t, ca, dir, "")
	c, _ := softCheckpoints(t, k.Writer())
	k.key, k.public = c.key, c.key.public
	k.sign(t.Context())
	name := annotationPrefix + string(k.Writer().ID())
	said := k.Annotations()
	if err := errors.Join(k.Heard(said), k.Suspicion()); err != nil || k.signed == nil {
		t.Fatalf("what it has said itself: %v", err)
	}
	forge := func(change func(*witnessRecord)) map[string]string {
		var r witnessRecord
		must.OK(t, json.Unmarshal([]byte(said[name]), &r))
		change(&r)
		text, err := json.Marshal(r)
		must.OK(t, err)
		return map[string]string{name: string(text)}
	}
	later := fmt.Sprintf("99:%064d", 7)
	for what, lease := range map[string]map[string]string{
		"a later head": forge(func(r *witnessRecord) { r.Head = later }),
		"with another head's signature": forge(func(r *witnessRecord) {
			r.Head,
				r.Signed.Head = later, later
		}),
		"with no signature": forge(func(r *witnessRecord) {
			r.Head, r.Signed = later,
				nil
		}),
		"of an earlier version": {annotationJournal: string(k.Writer().ID()),
			annotationHead: later},
	} {
		k.disputed = journal.Head{}
		if err := k.Heard(lease); err != nil || k.State() != nil || k.Suspicion() == nil {
			t.Errorf("%s: %v, %v; suspected: %v", what, err, k.State(), k.Suspicion())
		}
		if !strings.Contains(k.Annotations()[name], `"disputed":"`+later) {
			t.Errorf("%s: the witness forgets it: %s", what, k.Annotations()[name])
		}
	}
	if k.State() != nil || k.Suspicion() == nil || !strings.Contains(k.Suspicion().Error(), later) {
		t.Errorf("%v; suspected: %v", k.State(), k.Suspicion())
	}
	lost := journal.Head{Seq: 99, SHA256: journal.Hash{7}}
	algorithm, signature, err := k.key.sign(t.Context(),
		journal.WitnessText(k.Writer().ID(), lost))
	must.OK(t, err)
	lease := forge(func(r *witnessRecord) {
		r.Signed = &signedHead{lost.String(),
			algorithm.String(), signature}
	})
	if err := k.Heard(lease); !errors.Is(err, journal.ErrRolledBack) ||
		!errors.Is(k.State(), journal.ErrRolledBack) {
		t.Errorf("a signed head: %v, %v", err, k.State())
	}
}

// Each journal has an annotation of its own; the oldest of others gives way to ours; and a
// STATE_DIR that was emptied shows.
func TestTheLeaseKeepsEachJournal(t *testing.T) {
	dir := t.TempDir()
	ca := fixture.NewCA(t)
	ca.OpenJournal(t, dir).Close()
	k := reopen(t, ca, dir, "")
	lease := map[string]string{"of/another": "stays"}
	began := time.Now()
	for i := range maxWitnessed + 3 {
		text, err := json.Marshal(witnessRecord{Head: fmt.Sprintf("%d:%064d", i+1, 1),
			Time: began.Add(time.Duration(i) * time.Minute), Place: "elsewhere"})
		must.OK(t, err)
		lease[fmt.Sprintf("%s%08x", annotationPrefix, i+1)] = string(text)
	}
	must.OK(t, errors.Join(k.Heard(lease), k.Suspicion()))
	said := k.Annotations()
	for i := range maxWitnessed + 3 {
		if value, gone := said[fmt.Sprintf("%s%08x", annotationPrefix, i+1)]; gone != (i < 4) ||
			value != "" {
			t.Errorf("journal %d gives way: %t", i+1, gone)
		}
	}
	if said[annotationPrefix+string(k.Writer().ID())] == "" ||
		said[annotationJournal] != string(k.Writer().ID()) || said["of/another"] != "" {
		t.Errorf("%v", said)
	}
	former := k.Writer().ID()
	head := k.Writer().Head()
	maps.Copy(lease, said)
	k.stop()
	must.OK(t, os.RemoveAll(filepath.Join(dir, "state")))
	k = reopen(t, ca, dir, "")
	if err := k.Heard(lease); err != nil || k.State() != nil || k.Suspicion() == nil ||
		!strings.Contains(k.Suspicion().Error(), string(former)) {
		t.Errorf("STATE_DIR is another: %v; suspected: %v", err, k.Suspicion())
	}
	must.OK(t, rollback.HandOver(k.dir, head))
	k.accept(t.Context())
	if err := errors.Join(k.Heard(lease), k.Suspicion()); err != nil {
		t.Errorf("accepted: %v", err)
	}
}

// A file that cannot be read keeps the journal from being used; one that cannot be written is told
// of once.
func TestWitnessFile(t *testing.T) {
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "witness")
	ca := fixture.NewCA(t)
	ca.OpenJournal(t, dir).Close()
	must.OK(t, os.WriteFile(file, []byte("{"), 0o600))
	damaged := journal.New(filepath.Join(dir, "state"), journal.Options{CA: ca.Certificate},
		New(filepath.Join(dir, "state"), file, nil, hclog.NewNullLogger()), hclog.NewNullLogger())
	once, cancel := context.WithCancel(t.Context())
	cancel()
	if err := errors.Join(damaged.Run(once), damaged.State()); err == nil ||
		!strings.Contains(err.Error(), "WITNESS_FILE") {
		t.Errorf("a damaged file: %v", err)
	}
	must.OK(t, os.Remove(file))
	k := reopen(t, ca, dir, file)
	for _, uid := range []string{"", "a"} {
		if uid != "" {
			ca.Issue(t, k.Writer(), uid, time.Hour)
		}
		k.save()
		if text, err := os.ReadFile(file); err != nil ||
			!strings.Contains(string(text), k.Writer().Head().String()) {
			t.Errorf("%v: %s", err, text)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("%v: %v", left, err)
	}
	var log bytes.Buffer
	k.logger = hclog.New(&hclog.LoggerOptions{Output: &log})
	k.file = filepath.Join(dir, "nowhere", "witness")
	ca.Issue(t, k.Writer(), "b", time.Hour)
	k.save()
	k.save()
	if strings.Count(log.String(), "cannot be written") != 1 {
		t.Errorf("%s", &log)
	}
}

func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return clitest.Run(t, audit.NewCommand(), args...)
}
