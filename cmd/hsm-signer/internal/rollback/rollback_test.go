package rollback

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"hsm-signer/internal/must"
	"hsm-signer/issuer/journal"
)

// Root may accept for a process of another user, which must be able to read what it is told.
func TestHandedOverFileBelongsToTheOwnerOfTheDirectory(t *testing.T) {
	dir, owner := t.TempDir(), os.Geteuid()
	if owner == 0 {
		owner = 4711
		must.OK(t, os.Chown(dir, owner, 4712))
	}
	must.OK(t, HandOver(dir, journal.Head{Seq: 7}))
	about, err := os.Stat(filepath.Join(dir, File))
	must.OK(t, err)
	if got := int(about.Sys().(*syscall.Stat_t).Uid); got != owner {
		t.Errorf("the file belongs to user %d; want %d", got, owner)
	}
}
