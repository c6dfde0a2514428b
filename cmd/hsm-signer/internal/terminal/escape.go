package terminal

import (
	"strconv"
	"strings"
	"unicode"
)

// Escape escapes everything that could control a terminal: an error may quote untrusted text.
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

// EscapeLine is Escape for one line: it escapes newlines too.
func EscapeLine(text string) string { return strings.ReplaceAll(Escape(text), "\n", `\n`) }

// OneLine escapes everything that would break a table or control the terminal.
func OneLine(text string) string {
	quoted := strconv.QuoteToGraphic(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// ignorable are characters that most programs show as nothing, though they are letters or marks.
var ignorable = []*unicode.RangeTable{
	unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector,
}

// Invisible reports whether a reader cannot see the character, or cannot tell it from an ordinary
// space: control and format characters such as a byte order mark, and every space except U+0020.
func Invisible(r rune) bool {
	return r != ' ' &&
		(unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Z) ||
			unicode.In(r, ignorable...))
}
