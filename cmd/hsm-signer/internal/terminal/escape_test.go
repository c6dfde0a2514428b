package terminal

import (
	"testing"
)

// What an error quotes of a file, or of a requester, commands no terminal.
func TestErrorsCommandNoTerminal(t *testing.T) {
	const text = "STATE_DIR: one\nlog: \x1b]0;all is well\a\r\u009b2K \u202e \"C:\\ü\""
	if got, want := Escape(text),
		"STATE_DIR: one\nlog: \\x1b]0;all is well\\a\\r\\u009b2K \\u202e \"C:\\ü\""; got != want {
		t.Errorf("%q; want %q", got, want)
	}
}
