package terminal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"unicode/utf16"
)

// PrintJSON writes the value as one line of JSON in ASCII. encoding/json does not escape control
// characters beyond ASCII, and the text of requesters must not control a terminal.
func PrintJSON(out io.Writer, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	_, err = out.Write(append(asciiJSON(text), '\n'))
	return err
}

// asciiJSON returns the same JSON, with every character escaped except printable ASCII.
func asciiJSON(text []byte) []byte {
	var ascii bytes.Buffer
	for _, r := range string(text) {
		switch {
		case r < 0x7f:
			ascii.WriteRune(r)
		case r <= 0xffff:
			fmt.Fprintf(&ascii, `\u%04x`, r)
		default:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&ascii, `\u%04x\u%04x`, high, low)
		}
	}
	return ascii.Bytes()
}
