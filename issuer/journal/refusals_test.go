package journal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func refusals(t *testing.T, path string) (all []Refusal) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var r Refusal
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func TestRefusalsAreCapped(t *testing.T) {
	dir := t.TempDir()
	r := OpenRefusals(dir, 2000)
	for range 200 {
		r.Record(Refusal{UID: "u", Username: strings.Repeat("x", 300), Reasons: []Reason{{"rule", "dnsNames", "no"}}})
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, refusalsName)
	for _, path := range []string{path, path + ".1"} {
		info, err := os.Stat(path)
		if err != nil || info.Size() > 3000 || info.Mode().Perm() != 0o600 {
			t.Errorf("%v: %v", info, err)
		}
		if all := refusals(t, path); len(all) == 0 || all[0].Reasons[0].Field != "dnsNames" || all[0].Time == "" {
			t.Errorf("%+v", all)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("%v %v", entries, err)
	}
}

func TestOneRefusalIsShort(t *testing.T) {
	dir := t.TempDir()
	r := OpenRefusals(dir, 0)
	long := Refusal{Username: strings.Repeat("\x00", 1<<20)}
	for range 1000 {
		long.Reasons = append(long.Reasons, Reason{Message: strings.Repeat("y", 1<<16)})
	}
	r.Record(long)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	all := refusals(t, filepath.Join(dir, refusalsName))
	if len(all) != 1 || len(all[0].Reasons) != refusalsWhy+1 || all[0].Reasons[refusalsWhy].Message != "and 980 more" {
		t.Errorf("%d", len(all))
	}
}

// A log that cannot be written drops, and stops nobody.
func TestRefusalsThatCannotBeWrittenAreCounted(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, refusalsName), 0o700); err != nil { // no file can be there
		t.Fatal(err)
	}
	r := OpenRefusals(dir, 0)
	for range 1000 {
		r.Record(Refusal{})
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if r.Dropped() != 1000 {
		t.Errorf("%d are dropped", r.Dropped())
	}
}
