package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// isTerminal tells whether someone may be reading along.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// takesControls tells whether control sequences may be written: to terminals that know any.
func takesControls(w io.Writer) bool { return isTerminal(w) && os.Getenv("TERM") != "dumb" }

// wantsColor tells whether text may be coloured: where control sequences may be written, unless NO_COLOR is set and not
// empty, whatever it says (https://no-color.org).
func wantsColor(w io.Writer) bool { return takesControls(w) && os.Getenv("NO_COLOR") == "" }

// localTime is how people read a time: in their own zone, which it names by its distance from UTC.
func localTime(t time.Time) string { return t.Local().Format(time.RFC3339) }

const (
	eraseLine  = "\r\x1b[K"
	quietFor   = 2 * time.Second // how long a command may take before it says how far it is
	progressAt = time.Second     // each that often
)

// progressing does what takes a while, and tells those who may be reading along that it goes on.
func progressing(w io.Writer, what string, do func()) {
	if !takesControls(w) {
		do()
		return
	}
	ticker := time.NewTicker(progressAt)
	defer ticker.Stop()
	progress(w, what, ticker.C, do)
}

// progress writes a line at each tick after the first while, and erases it in the end.
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
				fmt.Fprint(w, eraseLine)
			}
			return
		case now := <-ticks:
			if passed := now.Sub(began); passed >= quietFor {
				fmt.Fprintf(w, "%s%s … %s", eraseLine, what, passed.Round(time.Second))
				shown = true
			}
		}
	}
}
