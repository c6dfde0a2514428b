package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// requireFault requires that the error says so; nothing to say: that there is none.
func requireFault(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%v; want %q", err, want)
	}
}

// A policy is read when nobody but root and who runs this may write it, or put another in its place: where it is named, and where it is.
func TestPolicyFileIsKept(t *testing.T) {
	const open = "may be replaced by everybody"
	for name, c := range map[string]struct {
		path, target string // target: what path links to; path is within the directory that the test makes
		mode         fs.FileMode
		file         fs.FileMode
		want         string
	}{
		"as it should be":                           {"kept/policy.yaml", "", 0, 0o600, ""},
		"a file that everybody may write":           {"kept/policy.yaml", "", 0, 0o602, "may be written by everybody"},
		"a directory that everybody may write to":   {"made/policy.yaml", "", 0o777, 0o600, open},
		"a sticky directory":                        {"made/policy.yaml", "", 0o777 | fs.ModeSticky, 0o600, ""},
		"a link":                                    {"kept/policy.yaml", "made/policy.yaml", 0o755, 0o600, ""},
		"a link to where everybody may write":       {"kept/policy.yaml", "made/policy.yaml", 0o777, 0o600, open},
		"a link from where everybody may write":     {"made/policy.yaml", "kept/policy.yaml", 0o777, 0o600, open},
		"a link to a file that everybody may write": {"kept/policy.yaml", "made/policy.yaml", 0o755, 0o602, "may be written by everybody"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, target := filepath.Join(dir, c.path), filepath.Join(dir, c.target)
			must(t, os.Mkdir(filepath.Join(dir, "kept"), 0o700))
			must(t, os.Mkdir(filepath.Join(dir, "made"), 0o700))
			if c.target == "" {
				target = path
			} else {
				must(t, os.Symlink(target, path))
			}
			must(t, os.WriteFile(target, []byte("version: 1\n"), 0o600))
			must(t, os.Chmod(target, c.file))
			if c.mode != 0 {
				must(t, os.Chmod(filepath.Join(dir, "made"), c.mode))
			}
			_, err := readPolicyFile(path, false)
			requireFault(t, err, c.want)
			_, err = readPolicyFile(path, true) // nothing is signed by it
			requireFault(t, err, "")
		})
	}
}

// A chain of links is as safe as the least of the directories in which its links are.
func TestPolicyFileBehindLinks(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"kept", "made"} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	must(t, os.WriteFile(filepath.Join(dir, "kept", "real.yaml"), []byte("version: 1\n"), 0o600))
	must(t, os.Symlink("../kept/real.yaml", filepath.Join(dir, "made", "current")))
	must(t, os.Symlink("../made", filepath.Join(dir, "kept", "data")))
	path := filepath.Join(dir, "kept", "policy.yaml")
	must(t, os.Symlink("data/current", path))
	_, err := readPolicyFile(path, false)
	requireFault(t, err, "")
	must(t, os.Chmod(filepath.Join(dir, "made"), 0o777))
	_, err = readPolicyFile(path, false)
	requireFault(t, err, "may be replaced by everybody")
	must(t, os.Remove(path))
	must(t, os.Symlink("policy.yaml", path))
	_, err = placesOf(path)
	requireFault(t, err, "more than 40 links")
}

// Whoever owns the file, or its directory, may write it.
func TestPolicyFileOfAnother(t *testing.T) {
	dir, owner := t.TempDir(), os.Getuid()
	path := filepath.Join(dir, "policy.yaml")
	must(t, os.WriteFile(path, []byte("version: 1\n"), 0o600))
	if owner == 0 { // who may give it away
		owner = 4711
		must(t, os.Chown(path, owner, -1))
		must(t, os.Chown(dir, owner, -1))
	}
	info, err := os.Stat(path)
	must(t, err)
	requireFault(t, requireKept(path, info, owner), "")
	requireFault(t, requireKept(path, info, owner+1), "belongs to the user")
	requireFault(t, requireKeptIn(dir, path, owner+1), "may be replaced by the user")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
