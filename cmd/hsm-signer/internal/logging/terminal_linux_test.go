package logging

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/internal/must"
)

// newTerminal makes a pseudoterminal: what is written to the one can be read from the other.
func newTerminal(t *testing.T) (tty, screen *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must.OK(t, err)
	t.Cleanup(func() { _ = screen.Close() })
	must.OK(t, unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	must.OK(t, err)
	tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	must.OK(t, err)
	t.Cleanup(func() { _ = tty.Close() })
	return tty, screen
}

// notTerminals are what is written to as well: a file, a pipe, and a device that is none.
func notTerminals(t *testing.T) (all []io.Writer) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	must.OK(t, err)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	must.OK(t, err)
	reader, writer, err := os.Pipe()
	must.OK(t, err)
	for _, f := range []*os.File{file, null, writer, reader} {
		all = append(all, f)
		t.Cleanup(func() { _ = f.Close() })
	}
	return all
}

// Colours and other control sequences are for terminals that take them; NO_COLOR takes the colours
// away, whatever it says, unless it is empty (https://no-color.org).
func TestColoursAreForTerminals(t *testing.T) {
	others := append(notTerminals(t), io.Writer(&bytes.Buffer{}))
	for _, c := range []struct {
		term, noColor      string
		coloured, controls bool
	}{
		{"xterm-256color", "", true, true}, {"", "", true, true}, {"dumb", "", false, false},
		{"xterm-256color", "1", false, true}, {"xterm-256color", "0", false,
			true}, {"xterm-256color", "false", false, true}, {"dumb", "1", false, false},
	} {
		t.Setenv("TERM", c.term)
		t.Setenv("NO_COLOR", c.noColor)
		tty, screen := newTerminal(t)
		if terminal.WantsColor(tty) != c.coloured || terminal.TakesControls(tty) != c.controls {
			t.Errorf("%+v: coloured %t, controls %t", c, terminal.WantsColor(tty),
				terminal.TakesControls(tty))
		}
		New(hclog.Info, "", tty).Error("it fails")
		if line := readLine(t, screen); strings.Contains(line, "\x1b") != c.coloured ||
			!strings.Contains(line, "it fails") || strings.HasPrefix(line, "{") {
			t.Errorf("%+v: the log is %q", c, line)
		}
		for _, w := range others {
			if terminal.WantsColor(w) || terminal.TakesControls(w) {
				t.Errorf("%+v: %T is coloured", c, w)
			}
		}
	}
}

// readLine reads what a terminal shows up to the end of a line.
func readLine(t *testing.T, screen *os.File) string {
	t.Helper()
	var line strings.Builder
	for b := make([]byte, 1); !strings.HasSuffix(line.String(), "\n"); line.Write(b) {
		if _, err := screen.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	return line.String()
}
