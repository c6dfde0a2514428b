package release

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"hsm-signer/integration/must"
)

var commitTime = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)

// dpkg, where it is, sorts the versions of packages in the order in which their commits are made.
func TestVersionsSort(t *testing.T) {
	earlier := ""
	_, noDpkg := exec.LookPath("dpkg")
	for _, c := range []struct{ text, want string }{
		{"0123abcd4567", "0.0.0~20260203040506.g0123abcd4567"},
		{"v0.1.0", "0.1.0"},
		{"v0.1.0-4-g0123abcd4567", "0.1.0+4.g0123abcd4567"},
		{"v0.2.0-rc.1", "0.2.0~rc.1"},
		{"v0.2.0-rc.1-2-g0123abcd4567", "0.2.0~rc.1+2.g0123abcd4567"},
		{"v0.2.0-rc.2", "0.2.0~rc.2"},
		{"v0.2.0", "0.2.0"},
		{"v0.10.0", "0.10.0"},
	} {
		v, err := parseVersion(c.text, commitTime)
		if err != nil || v.pkg != c.want {
			t.Errorf("%q is %q for packages, %v; not %q", c.text, v.pkg, err, c.want)
		}
		if earlier != "" && noDpkg == nil && exec.CommandContext(t.Context(), "dpkg",
			"--compare-versions", earlier, "lt", v.pkg).Run() != nil {
			t.Errorf("dpkg sorts %s after %s", earlier, v.pkg)
		}
		earlier = v.pkg
	}
	for _, text := range []string{"", "1.2.3", "v1.2", "v1.2.3-dirty", "release", "v1.2.3-1"} {
		if v, err := parseVersion(text, commitTime); err == nil {
			t.Errorf("%q is the version %+v", text, v)
		}
	}
}

// tree writes files, which have their name as content, and a symbolic link.
func tree(t *testing.T, mode fs.FileMode, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		to := filepath.Join(dir, name)
		must.OK(t, os.MkdirAll(filepath.Dir(to), 0o700))
		must.OK(t, os.WriteFile(to, []byte(name), mode))
	}
	must.OK(t, os.Symlink("a", filepath.Join(dir, "link")))
	return dir
}

// An archive depends on names, contents and whether its owner may execute a file, and on nothing
// else.
func TestArchivesAreReproducible(t *testing.T) {
	archive := func(dir string) []byte {
		t.Helper()
		entries := must.Get(below(dir, "top"))(t)
		slices.Reverse(entries)
		to := filepath.Join(t.TempDir(), "a.tar.gz")
		must.OK(t, writeArchive(to, entries, commitTime))
		return must.Get(os.ReadFile(to))(t)
	}
	first := archive(tree(t, 0o600, "b/c", "a", "b/a"))
	if !bytes.Equal(first, archive(tree(t, 0o644, "b/a", "b/c", "a"))) {
		t.Error("two archives of the same files differ")
	}
	if bytes.Equal(first, archive(tree(t, 0o744, "b/c", "a", "b/a"))) {
		t.Error("an archive does not show which files are programs")
	}
	list := exec.CommandContext(t.Context(), "tar", "-tvzf", "-", "--utc")
	list.Stdin = bytes.NewReader(first)
	out := must.Get(list.CombinedOutput())(t)
	want := `drwxr-xr-x root/root 0 2026-02-03 04:05 top/
-rw-r--r-- root/root 1 2026-02-03 04:05 top/a
drwxr-xr-x root/root 0 2026-02-03 04:05 top/b/
-rw-r--r-- root/root 3 2026-02-03 04:05 top/b/a
-rw-r--r-- root/root 3 2026-02-03 04:05 top/b/c
lrwxrwxrwx root/root 0 2026-02-03 04:05 top/link -> a
`
	if got := regexp.MustCompile(" +").ReplaceAllString(string(out), " "); got != want {
		t.Errorf("the archive has\n%s", got)
	}
}

// ownMaterial returns the bill of materials of this test's binary.
func ownMaterial(t *testing.T) (m material, binary string) {
	t.Helper()
	binary = must.Get(os.Executable())(t)
	b := &build{Options: Options{Out: filepath.Dir(binary)}, version: version{pkg: "1.2.3"},
		time: commitTime}
	name := filepath.Base(binary)
	m = must.Get(b.material(artefact{file: name, name: "test", purl: "pkg:generic/test@1.2.3",
		binaries: []string{binary, binary}}))(t)
	return m, binary
}

// A bill of materials has each module of "go version -m" once, and Go itself.
func TestMaterialsAreComplete(t *testing.T) {
	m, binary := ownMaterial(t)
	out := must.Get(exec.CommandContext(t.Context(), "go", "version", "-m", binary).Output())(t)
	want := []string{"stdlib"}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); fields[0] == "mod" || fields[0] == "dep" {
			want = append(want, fields[1])
		}
	}
	var got, ids []string
	for _, p := range m.parts {
		got, ids = append(got, p.name), append(ids, p.reference())
	}
	slices.Sort(want)
	slices.Sort(got)
	slices.Sort(ids)
	if !slices.Equal(got, want) {
		t.Errorf("the parts are %q, and the binary has %q", got, want)
	}
	if len(slices.Compact(ids)) != len(want) {
		t.Errorf("%d parts have only the references %q", len(want), ids)
	}
}

// Both forms list the same parts, and are the same each time.
func TestMaterialsAreReproducible(t *testing.T) {
	m, _ := ownMaterial(t)
	spdx, cdx := m.spdx(), m.cycloneDX()
	if len(spdx.Packages) != len(m.parts)+1 || len(cdx.Components) != len(m.parts) {
		t.Errorf("%d parts, %d packages and %d components", len(m.parts), len(spdx.Packages),
			len(cdx.Components))
	}
	for i, p := range m.parts {
		a, b := spdx.Packages[i+1], cdx.Components[i]
		if a.References[0].Locator != p.purl || b.PURL != p.purl || a.Version != b.Version {
			t.Errorf("%q is %+v and %+v", p.purl, a, b)
		}
	}
	again, _ := ownMaterial(t)
	for _, pair := range [][2]any{{spdx, again.spdx()}, {cdx, again.cycloneDX()}} {
		first := must.Get(json.Marshal(pair[0]))(t)
		second := must.Get(json.Marshal(pair[1]))(t)
		if !bytes.Equal(first, second) {
			t.Errorf("twice the same is\n%s\n%s", first, second)
		}
	}
	id := regexp.MustCompile("^[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
	one, other := m.identifier("spdx"), m.identifier("cyclonedx")
	m.sum = strings.Repeat("0", 64)
	if changed := m.identifier("spdx"); !id.MatchString(one) || one == other || one == changed {
		t.Errorf("the identifiers are %q, %q and of another file %q", one, other, changed)
	}
}

// The licenses name each module of a binary, once, and a module without one is an error.
func TestLicensesAreComplete(t *testing.T) {
	m, _ := ownMaterial(t)
	b := &build{Options: Options{Go: "go"}, source: "."}
	dirs := must.Get(b.moduleDirs(t.Context(), m.parts))(t)
	text := must.Get(notice(m.parts, dirs))(t)
	for _, p := range m.parts {
		own := strings.HasPrefix(p.name, "hsm-signer")
		if n := strings.Count(text, "\n"+p.name+" "+p.version+"\n"); n != 1 && !own ||
			n != 0 && own {
			t.Errorf("%s is named %d times", p.name, n)
		}
	}
	dirs["stdlib"] = t.TempDir()
	if _, err := notice(m.parts, dirs); err == nil || !strings.Contains(err.Error(), "stdlib") {
		t.Errorf("without Go's license: %v", err)
	}
}

// A release never removes a directory that holds something else.
func TestOutIsNotOverwritten(t *testing.T) {
	dir := tree(t, 0o600, "mine")
	b := &build{Options: Options{Out: dir}}
	if err := b.emptyOut(t.Context()); err == nil {
		t.Error("it is overwritten")
	}
	must.OK(t, os.WriteFile(filepath.Join(dir, checksumFile), nil, 0o600))
	must.OK(t, b.emptyOut(t.Context()))
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("an earlier release leaves %v, %v", left, err)
	}
}
