package trustedfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"hsm-signer/internal/must"
)

// requireError requires an error with this text; without a text, none.
func requireError(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" &&
		(err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%v; want %q", err, want)
	}
}

var rules = Rules{Limit: 64, Stake: "what is signed"}

// otherUser is a user who is neither root nor the one who runs the tests.
const otherUser = 4711

// give gives a file to that user, which only root can do, and reports whether it did.
func give(t *testing.T, path string) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return false
	}
	must.OK(t, os.Lchown(path, otherUser, otherUser))
	return true
}

// tree makes the directories kept and open, with a file in kept.
func tree(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"kept", "kept/inner", "open", "open/inner"} {
		must.OK(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	for _, name := range []string{"kept/file", "kept/inner/file", "open/file", "open/inner/file"} {
		must.OK(t, os.WriteFile(filepath.Join(dir, name), []byte("text"), 0o600))
	}
	return dir
}

func TestWhoCanReplaceAFile(t *testing.T) {
	const all = "can be replaced by everyone"
	for name, c := range map[string]struct {
		path     string
		link, to string      // a symbolic link that is made first
		mode     fs.FileMode // of the directory "open"; 0: 0700
		want     string
	}{
		"as it should be":          {path: "kept/file"},
		"in a directory of all":    {path: "open/file", mode: 0o777, want: all},
		"below a directory of all": {path: "open/inner/file", mode: 0o777, want: all},
		"in a sticky directory":    {path: "open/file", mode: 0o777 | fs.ModeSticky},
		"below a sticky directory": {path: "open/inner/file", mode: 0o777 | fs.ModeSticky},
		"through a link":           {path: "kept/l", link: "kept/l", to: "../kept/file"},
		"through an absolute link": {path: "kept/l", link: "kept/l", to: "DIR/open/file",
			mode: 0o777, want: all},
		"link to a directory": {path: "kept/l/file", link: "kept/l", to: "../open/inner",
			mode: 0o777, want: all},
		"a link that lies open": {path: "open/l", link: "open/l", to: "../kept/file",
			mode: 0o777, want: all},
		"a link to itself": {path: "kept/l", link: "kept/l", to: "l",
			want: "more than 40 symbolic links"},
		"a step back out of a link": {path: "kept/l/../file", link: "kept/l", to: "../open/inner",
			mode: 0o777, want: all},
		"nothing there": {path: "kept/none", want: "no such file"},
		"a directory":   {path: "kept/inner", want: "is not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t)
			if c.link != "" {
				must.OK(t, os.Symlink(strings.Replace(c.to, "DIR", dir, 1),
					filepath.Join(dir, c.link)))
			}
			if c.mode != 0 {
				must.OK(t, os.Chmod(filepath.Join(dir, "open"), c.mode))
			}
			path := dir + "/" + c.path // filepath.Join would take out ".."
			text, err := rules.Read(path)
			requireError(t, err, c.want)
			if c.want == "" && string(text) != "text" {
				t.Errorf("read %q", text)
			}
			if c.want == all {
				_, err := Rules{Limit: 64, Anyone: true}.Read(path)
				requireError(t, err, "")
			}
		})
	}
}

// A path that is not absolute begins in the working directory, whose parents count too.
func TestRelativePaths(t *testing.T) {
	dir := tree(t)
	t.Chdir(filepath.Join(dir, "open", "inner"))
	requireError(t, rules.Check("../../kept/file"), "")
	must.OK(t, os.Chmod(filepath.Join(dir, "open"), 0o777))
	requireError(t, rules.Check("file"), "can be replaced by everyone")
}

func TestModesOfAFile(t *testing.T) {
	exposed := errors.New("exposed")
	secret := Rules{Limit: 64, Stake: "x",
		Exposed: func(err error) error { return errors.Join(exposed, err) }}
	path := filepath.Join(tree(t), "kept", "file")
	for _, c := range []struct {
		mode           fs.FileMode
		public, secret string
	}{
		{0o400, "", ""}, {0o600, "", ""}, {0o440, "", ""}, {0o660, "", ""},
		{0o644, "", "can be read by everyone (mode 0644)"},
		{0o404, "", "chmod o-r"},
		{0o602, "can be written by everyone", "can be written by everyone"},
	} {
		must.OK(t, os.Chmod(path, c.mode))
		requireError(t, rules.Check(path), c.public)
		err := secret.Check(path)
		requireError(t, err, c.secret)
		if c.public == "" && c.secret != "" && !errors.Is(err, exposed) {
			t.Errorf("%04o: Exposed was not asked: %v", c.mode, err)
		}
	}
	secret.Exposed = func(error) error { return nil }
	must.OK(t, os.Chmod(path, 0o644))
	requireError(t, secret.Check(path), "")
}

func TestWhatIsNoFile(t *testing.T) {
	dir := tree(t)
	path := filepath.Join(dir, "kept", "pipe")
	must.OK(t, syscall.Mkfifo(path, 0o600))
	requireError(t, rules.Check(path), "is not a regular file")
	must.OK(t, os.WriteFile(path+"2", make([]byte, 65), 0o600))
	requireError(t, rules.Check(path+"2"), "has 65 bytes, and at most 64")
	requireError(t, rules.Check(""), "the path is empty")
}

// What decides nothing may come through a pipe, such as /dev/stdin, and is bounded anyway.
func TestPipeOfAnyone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	must.OK(t, syscall.Mkfifo(path, 0o600))
	for text, words := range map[string]string{"rules: []\n": "",
		strings.Repeat("x", 65): "more than 64 bytes"} {
		written := make(chan error)
		go func() { written <- os.WriteFile(path, []byte(text), 0) }() // waits for the reader
		got, err := Rules{Limit: 64, Anyone: true}.Read(path)
		requireError(t, err, words)
		must.OK(t, <-written)
		if err == nil && string(got) != text {
			t.Errorf("read %q, want %q", got, text)
		}
	}
}

// Whoever owns a file, a directory on the way, or a link in a sticky directory, can replace it.
func TestFilesOfAnother(t *testing.T) {
	for name, c := range map[string]struct{ gives, path, want string }{
		"file":          {"kept/file", "kept/file", "belongs to user 4711"},
		"its directory": {"kept", "kept/file", "can be replaced by user 4711"},
		"one above":     {"kept", "kept/inner/file", "can be replaced by user 4711"},
		"a link":        {"sticky/l", "sticky/l", "can be replaced by user 4711, who owns"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t)
			must.OK(t, os.Mkdir(filepath.Join(dir, "sticky"), 0o700))
			must.OK(t, os.Chmod(filepath.Join(dir, "sticky"), 0o777|fs.ModeSticky))
			must.OK(t, os.Symlink("../kept/file", filepath.Join(dir, "sticky", "l")))
			path := filepath.Join(dir, c.path)
			if give(t, filepath.Join(dir, c.gives)) {
				requireError(t, rules.Check(path), c.want)
				return
			}
			// Without root's rights, this process's own files are those of another.
			info, err := os.Stat(path)
			must.OK(t, err)
			_, err = walk(path, trust{user: otherUser, path: path, groups: anyGroup}.step)
			requireError(t, errors.Join(err, rules.checkOwner(path, info, otherUser)), "user")
		})
	}
}

func TestResolveDir(t *testing.T) {
	dir, user := tree(t), os.Geteuid()
	real, err := filepath.EvalSymlinks(dir)
	must.OK(t, err)
	// as systemd's DynamicUser makes it
	must.OK(t, os.Symlink("kept/inner", filepath.Join(dir, "state")))
	for path, want := range map[string]string{
		"kept": "kept", "state": "kept/inner", "state/none/deep": "kept/inner/none/deep",
		"none": "none",
	} {
		if got, err := ResolveDir(filepath.Join(dir, path), user); err != nil ||
			got != filepath.Join(real, want) {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
	_, err = ResolveDir(filepath.Join(dir, "kept", "file"), user)
	requireError(t, err, "is not a directory")
	_, err = ResolveDir(filepath.Join(dir, "kept"), user+otherUser)
	if user != 0 {
		requireError(t, err, "can be replaced by user")
	}
	must.OK(t, os.Chmod(filepath.Join(dir, "kept"), 0o777))
	_, err = ResolveDir(filepath.Join(dir, "state"), user)
	requireError(t, err, "can be replaced by everyone")
	must.OK(t, os.Chmod(filepath.Join(dir, "kept"), 0o770))
	_, err = ResolveDir(filepath.Join(dir, "state"), user)
	requireError(t, err, "")
	if os.Geteuid() == 0 {
		must.OK(t, os.Chown(filepath.Join(dir, "kept"), 0, otherUser))
		_, err = ResolveDir(filepath.Join(dir, "state"), user)
		requireError(t, err, "can be replaced by the group 4711")
		// a file may be its group's
		requireError(t, rules.Check(filepath.Join(dir, "kept", "file")), "")
		must.OK(t, os.Chmod(filepath.Join(dir, "kept"), 0o700))
		give(t, filepath.Join(dir, "kept", "inner"))
		_, err = ResolveDir(filepath.Join(dir, "state"), user)
		requireError(t, err, "belongs to user 4711")
		_, err = ResolveDir(filepath.Join(dir, "state"), otherUser)
		requireError(t, err, "")
	}
}
