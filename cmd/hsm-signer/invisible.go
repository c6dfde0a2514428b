package main

import "unicode"

// ignorable are characters that most programs show as nothing, though they are letters or marks.
var ignorable = []*unicode.RangeTable{
	unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector,
}

// invisible reports whether a reader cannot see the character, or takes it for an ordinary space:
// control and format characters such as a byte order mark, and every space except U+0020.
func invisible(r rune) bool {
	return r != ' ' && (unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Z) || unicode.In(r, ignorable...))
}
