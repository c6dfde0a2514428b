package journal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
)

func decisions(t *testing.T, path string) (all []Decision) {
	t.Helper()
	text, err := os.ReadFile(path)
	must.OK(t, err)
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var r Decision
		must.OK(t, json.Unmarshal(lines.Bytes(), &r))
		all = append(all, r)
	}
	return all
}

func TestDecisionsAreCapped(t *testing.T) {
	dir := t.TempDir()
	r := OpenDecisions(dir, RefusalsLog, 2000)
	for range 200 {
		r.Record(Decision{UID: "u", Username: strings.Repeat("x", 300),
			Reasons: []policy.Reason{{Code: policy.NameNotAllowed, Rule: "rule", Field: "dnsNames",
				Message: "no", Allowed: []string{"all"}}}})
	}
	must.OK(t, r.Close())
	path := filepath.Join(dir, RefusalsLog)
	for _, path := range []string{path, path + ".1"} {
		info, err := os.Stat(path)
		if err != nil || info.Size() > 3000 || info.Mode().Perm() != 0o600 {
			t.Errorf("%v: %v", info, err)
		}
		if all := decisions(t, path); len(all) == 0 || all[0].Reasons[0].Field != "dnsNames" ||
			all[0].Reasons[0].Code != "" || all[0].Reasons[0].Allowed != nil || all[0].Time == "" {
			t.Errorf("%+v", all)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("%v %v", entries, err)
	}
}

func TestOneDecisionIsShort(t *testing.T) {
	dir := t.TempDir()
	r := OpenDecisions(dir, RefusalsLog, 0)
	long := Decision{Username: strings.Repeat("\x00", 1<<20)}
	for range 1000 {
		long.Reasons = append(long.Reasons, policy.Reason{Message: strings.Repeat("y", 1<<16)})
	}
	for range 1000 {
		long.Names = append(long.Names, strings.Repeat("z", 1<<16))
	}
	r.Record(long)
	must.OK(t, r.Close())
	all := decisions(t, filepath.Join(dir, RefusalsLog))
	if len(all) != 1 || len(all[0].Reasons) != decisionsMany+1 ||
		all[0].Reasons[decisionsMany].Message != "and 980 more" ||
		len(all[0].Names) != decisionsMany+1 || all[0].Names[decisionsMany] != "and 980 more" {
		t.Errorf("%d", len(all))
	}
}

// A log that cannot be written drops, and stops nobody.
func TestDecisionsThatCannotBeWrittenAreCounted(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, RefusalsLog), 0o700); err != nil { // no file can be there
		t.Fatal(err)
	}
	r := OpenDecisions(dir, RefusalsLog, 0)
	for range 1000 {
		r.Record(Decision{})
	}
	must.OK(t, r.Close())
	if r.Dropped() != 1000 {
		t.Errorf("%d are dropped", r.Dropped())
	}
}

// What is logged is found, in the log and in its predecessor; a line that was cut is missing, nor
// what only a text of a line names.
func TestLoggedDecisionsAreFound(t *testing.T) {
	dir := t.TempDir()
	if found, err := Logged(dir, RefusalsLog, []string{"a"}); err != nil || len(found) > 0 {
		t.Errorf("without a log: %v, %v", found, err)
	}
	r := OpenDecisions(dir, RefusalsLog, 200)
	for _, uid := range []string{"a", "b", "c"} { // the first two fill a file
		r.Record(Decision{UID: uid, Name: `","uid":"named"`, Username: strings.Repeat("x", 60)})
	}
	must.OK(t, r.Close())
	f, err := os.OpenFile(filepath.Join(dir, RefusalsLog), os.O_APPEND|os.O_WRONLY, 0)
	must.OK(t, err)
	_, err = f.WriteString(`{"uid":"cut","na`)
	must.OK(t, errors.Join(err, f.Close()))
	found, err := Logged(dir, RefusalsLog, []string{"a", "c", "cut", "named", "other"})
	if want := map[string]bool{"a": true, "c": true}; err != nil || !maps.Equal(found, want) {
		t.Errorf("%v, %v; want %v", found, err, want)
	}
	must.OK(t, errors.Join(os.Remove(filepath.Join(dir, RefusalsLog)),
		os.Mkdir(filepath.Join(dir, RefusalsLog), 0o700)))
	if found, err := Logged(dir, RefusalsLog, []string{"a"}); err == nil {
		t.Errorf("what cannot be read: %v", found)
	}
}
