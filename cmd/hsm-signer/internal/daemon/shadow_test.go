package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/service"
	"hsm-signer/internal/must"
)

// A shadow refuses the directory of a process that signs, and creates a missing one.
func TestShadowHasADirectoryOfItsOwn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := service.RequireOwn(dir); err != nil {
		t.Error(err)
	}
	log := newShadowLog(dir)
	err := log.makeDir()
	log.stop()
	if err := errors.Join(err, service.RequireOwn(dir)); err != nil {
		t.Error(err)
	}
	must.OK(t, os.WriteFile(filepath.Join(dir, "journal-00000001.jsonl"), nil, 0o600))
	if err := service.RequireOwn(dir); !errors.Is(err, service.ErrNotOwn) {
		t.Errorf("beside a journal: %v", err)
	}
	below := newShadowLog(filepath.Join(dir, "journal-00000001.jsonl", "below"))
	defer below.stop()
	err = below.makeDir()
	if err == nil || exit.Code(err) != exit.Config {
		t.Errorf("where no directory can be: %v", err)
	}
}
