package status

import (
	"html"
	"regexp"
	"strings"
)

// runbookPage shows the runbook.
func runbookPage(sections []section) markup {
	return document("Runbook – hsm-signer", "", element(`body class="runbook"`, element("main",
		"<h1>Runbook</h1>\n", `<p><a href="/">Back to the status page</a></p>`,
		each(sections, func(s section) markup {
			return "\n" + element("section"+when(s.ID != "", attr("id", s.ID)),
				when(s.Title != "", element("h2", text(s.Title))), "\n", s.Body)
		}))))
}

// A section of the runbook has a heading of the second level.
type section struct {
	ID, Title string
	Body      markup
}

var (
	comment  = regexp.MustCompile(`(?s)<!--.*?-->`)
	link     = regexp.MustCompile(`\[([^\]]*)\]\(([^)\s]*)\)`)
	bold     = regexp.MustCompile(`(?s)\*\*(.+?)\*\*`)
	emphasis = regexp.MustCompile(`\*(\w[^*]*)\*`)
	code     = regexp.MustCompile("`([^`]+)`")
	// reference is how texts name a section of the runbook.
	reference = regexp.MustCompile(`docs/runbook\.md: (HSMSigner\w+)`)
)

// sections divides Markdown into its sections. The first has the text before all headings.
func sections(markdown string) (all []section) {
	markdown = comment.ReplaceAllString(markdown, "")
	for i, part := range strings.Split("\n"+markdown, "\n## ") {
		title, body, _ := strings.Cut(part, "\n")
		if i == 0 {
			title, body = "", strings.TrimPrefix(strings.TrimSpace(part), "# Runbook")
		}
		all = append(all, section{ID: strings.ToLower(title), Title: title, Body: rendered(body)})
	}
	return all
}

// rendered makes HTML of the Markdown that the runbook uses: paragraphs, lists, and within them
// code, bold text and links.
func rendered(body string) markup {
	var all []markup
	for _, block := range strings.Split(body, "\n\n") {
		block = strings.TrimSpace(block)
		switch items := strings.Split("\n"+block, "\n- "); {
		case block == "":
		case strings.HasPrefix(block, "```"):
			all = append(all, element("pre", text(strings.Trim(block, "`\n"))))
		case len(items) > 1 && items[0] == "":
			all = append(all, element("ul", each(items[1:], func(item string) markup {
				return element("li", inline(item))
			})))
		default:
			all = append(all, element("p", inline(block)))
		}
	}
	return join(all...)
}

// inline renders one paragraph. Only links within the runbook are links: nothing else is served.
func inline(text string) markup {
	var codes []string // what is in code is not rendered any further
	text = code.ReplaceAllStringFunc(html.EscapeString(text), func(found string) string {
		codes = append(codes, "<code>"+strings.Trim(found, "`")+"</code>")
		return "\x00"
	})
	text = bold.ReplaceAllString(text, "<strong>$1</strong>")
	text = emphasis.ReplaceAllString(text, "<em>$1</em>")
	text = link.ReplaceAllStringFunc(text, func(found string) string {
		parts := link.FindStringSubmatch(found)
		if strings.HasPrefix(parts[2], "#") {
			return `<a href="` + parts[2] + `">` + parts[1] + "</a>"
		}
		return parts[1] + " (" + parts[2] + ")"
	})
	for _, c := range codes {
		text = strings.Replace(text, "\x00", c, 1)
	}
	return markup(text) // it was escaped first
}

// linked escapes a text, and makes links of the sections of the runbook that it names.
func linked(text string) markup {
	return markup(reference.ReplaceAllStringFunc(html.EscapeString(text),
		func(found string) string {
			name := reference.FindStringSubmatch(found)[1]
			return `Runbook: <a href="/runbook#` + strings.ToLower(name) + `">` + name + "</a>"
		}))
}
