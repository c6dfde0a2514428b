// Package terminal writes for people and for programs that read JSON: it escapes what could control
// a terminal, and shows colours and progress only where a person can see them.
package terminal

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// Is reports whether w is a terminal.
func Is(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// TakesControls reports whether w is a terminal that knows control sequences.
func TakesControls(w io.Writer) bool { return Is(w) && os.Getenv("TERM") != "dumb" }

// WantsColor reports whether text to w may be coloured: w takes control sequences, and NO_COLOR is
// not set, or is empty (https://no-color.org).
func WantsColor(w io.Writer) bool { return TakesControls(w) && os.Getenv("NO_COLOR") == "" }

// LocalTime formats a time for people: in their own zone, with its offset.
func LocalTime(t time.Time) string { return t.Local().Format(time.RFC3339) }

const (
	EraseLine  = "\r\x1b[K"
	QuietFor   = 2 * time.Second // how long a command may take before it shows progress
	progressAt = time.Second     // between two updates
)

// ShowProgress calls do. If that takes a while, it shows progress on a terminal.
func ShowProgress(w io.Writer, what string, do func()) {
	if !TakesControls(w) {
		do()
		return
	}
	ticker := time.NewTicker(progressAt)
	defer ticker.Stop()
	progress(w, what, ticker.C, do)
}

// progress writes a line at each tick after QuietFor, and erases it in the end.
func progress(w io.Writer, what string, ticks <-chan time.Time, do func()) {
	began := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	shown := false
	for {
		select {
		case <-done:
			if shown {
				fmt.Fprint(w, EraseLine)
			}
			return
		case now := <-ticks:
			if passed := now.Sub(began); passed >= QuietFor {
				fmt.Fprintf(w, "%s%s … %s", EraseLine, what, passed.Round(time.Second))
				shown = true
			}
		}
	}
}

// Plural returns a number of things.
func Plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
