package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A shadow keeps away from what one that signs keeps, and makes a directory that is not there.
func TestShadowHasADirectoryOfItsOwn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := requireOwn(dir); err != nil {
		t.Error(err)
	}
	log, err := openShadowLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(log.Close(), requireOwn(dir)); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "journal-00000001.jsonl"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := requireOwn(dir); !errors.Is(err, errNotOwn) {
		t.Errorf("beside a journal: %v", err)
	}
	var exit *exitError
	if _, err := openShadowLog(filepath.Join(dir, "journal-00000001.jsonl", "below")); !errors.As(err, &exit) || exit.code != exitConfig {
		t.Errorf("where no directory can be: %v", err)
	}
}
