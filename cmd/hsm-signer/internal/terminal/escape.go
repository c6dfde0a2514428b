package terminal

import (
	"strconv"
	"strings"
	"unicode"
)

// Escape escapes whatever could command a terminal: an error may hold what a file says that is not to be believed.
func Escape(text string) string {
	var b strings.Builder
	for _, r := range text {
		if r == '\n' || strconv.IsGraphic(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRuneToASCII(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// EscapeLine is harmless, and stays on its line.
func EscapeLine(text string) string { return strings.ReplaceAll(Escape(text), "\n", `\n`) }

// OneLine escapes what would change the table or the terminal.
func OneLine(text string) string {
	quoted := strconv.QuoteToGraphic(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// ignorable are characters that most programs show as nothing, though they are letters or marks.
var ignorable = []*unicode.RangeTable{
	unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector,
}

// Invisible reports whether a reader cannot see the character, or takes it for an ordinary space:
// control and format characters such as a byte order mark, and every space except U+0020.
func Invisible(r rune) bool {
	return r != ' ' && (unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Z) || unicode.In(r, ignorable...))
}
