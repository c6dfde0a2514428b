package terminal

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// What takes longer than two seconds shows its progress, and leaves nothing behind.
func TestProgressing(t *testing.T) {
	var out bytes.Buffer
	ticks, seen := make(chan time.Time), make(chan struct{})
	go func() {
		defer close(seen)
		ticks <- time.Now().Add(QuietFor / 2)
		ticks <- time.Now().Add(QuietFor + time.Second)
	}()
	progress(&out, "making a key", ticks, func() { <-seen })
	if text := out.String(); strings.Count(text, "making a key … 3s") != 1 ||
		!strings.HasSuffix(text, EraseLine) {
		t.Errorf("%q", text)
	}
	out.Reset()
	done := false
	ShowProgress(&out, "making a key", func() { done = true })
	if !done || out.Len() > 0 {
		t.Errorf("done: %t; outside a terminal it says %q", done, out.String())
	}
}
