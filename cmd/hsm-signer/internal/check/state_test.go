package check

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/internal/must"
)

// Root may check the state directory of the user that hsm-signer runs as, as under systemd.
func TestCheckOfAnotherUsersStateDir(t *testing.T) {
	if os.Geteuid() != 0 {
		return // only root can give a directory away, and only for root it makes a difference
	}
	dir := filepath.Join(t.TempDir(), "private")
	must.OK(t, errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 4711, 4711)))
	c, faults := &config.Config{StateDir: dir, ForOwner: true}, &setting.Faults{}
	c.ResolveStateDir(faults)
	var details []string
	checkState(c, func(_, detail string, err error) {
		details = append(details, detail)
		faults.Add("check", err)
	})
	if len(*faults) > 0 || len(details) != 1 ||
		!strings.Contains(details[0], "only its owner, user 4711") {
		t.Errorf("%q, faults %q", details, *faults)
	}
}

// What "check" says of a state directory that "run" could not use.
func TestCheckOfTheStateDir(t *testing.T) {
	dir := t.TempDir()
	must.OK(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	for path, want := range map[string]string{
		"none": "", "none/deep/down": "", ".": "", "file/below": "not a directory",
	} {
		c := &config.Config{StateDir: dir + "/" + path, ForOwner: true}
		faults := &setting.Faults{}
		c.ResolveStateDir(faults)
		checkState(c, func(_, _ string, err error) { faults.Add("check", err) })
		if text := strings.Join(*faults, "\n"); want == "" && text != "" ||
			!strings.Contains(text, want) {
			t.Errorf("%s: %q; want %q", path, text, want)
		}
	}
}
