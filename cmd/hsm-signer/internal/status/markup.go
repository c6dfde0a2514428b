package status

import (
	"html"
	"strings"
)

// markup is HTML. A constant in the program converts to it by itself, and another string only by
// [text] and [attr], which escape it: the compiler holds that. Package html/template would do the
// same at run time, but its methods by name make the linker keep every exported method of the
// program, which are 8 MiB of memory.
type markup string

// text is a text between tags.
func text(s string) markup { return markup(html.EscapeString(s)) }

// attr is an attribute of a start tag, with the space before it.
func attr(name markup, value string) markup { return " " + name + `="` + text(value) + `"` }

// element has this start tag without its brackets, this content, and an end tag.
func element(start markup, content ...markup) markup {
	name, _, _ := strings.Cut(string(start), " ")
	return "<" + start + ">" + join(content...) + "</" + markup(name) + ">"
}

// join is one after the other.
func join(parts ...markup) markup {
	var all strings.Builder
	for _, part := range parts {
		all.WriteString(string(part))
	}
	return markup(all.String())
}

// each is what show makes of each item.
func each[T any](items []T, show func(T) markup) markup {
	var all []markup
	for _, item := range items {
		all = append(all, show(item))
	}
	return join(all...)
}

// when is the content if the condition holds, and nothing otherwise.
func when(condition bool, content ...markup) markup {
	if !condition {
		return ""
	}
	return join(content...)
}

// document is a whole page, whose head also has this.
func document(title string, head, body markup) markup {
	return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="stylesheet" href="/style.css">
` + element("title", text(title)) + head + "\n</head>\n" + body + "\n</html>\n"
}
