package status

import (
	"html/template"
	"regexp"
	"strings"
)

// runbookPage shows the runbook.
var runbookPage = template.Must(template.New("runbook.html").ParseFS(files, "runbook.html"))

// A section of the runbook has a heading of the second level.
type section struct {
	ID, Title string
	Body      template.HTML
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
func rendered(body string) template.HTML {
	var html strings.Builder
	for _, block := range strings.Split(body, "\n\n") {
		block = strings.TrimSpace(block)
		switch items := strings.Split("\n"+block, "\n- "); {
		case block == "":
		case strings.HasPrefix(block, "```"):
			html.WriteString("<pre>" + template.HTMLEscapeString(strings.Trim(block, "`\n")) +
				"</pre>\n")
		case len(items) > 1 && items[0] == "":
			html.WriteString("<ul>")
			for _, item := range items[1:] {
				html.WriteString("<li>" + inline(item) + "</li>")
			}
			html.WriteString("</ul>\n")
		default:
			html.WriteString("<p>" + inline(block) + "</p>\n")
		}
	}
	return template.HTML(html.String()) // every text in it is escaped
}

// inline renders one paragraph. Only links within the runbook are links: nothing else is served.
func inline(text string) string {
	var codes []string // what is in code is not rendered any further
	text = code.ReplaceAllStringFunc(template.HTMLEscapeString(text), func(found string) string {
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
	return text
}

// linked escapes a text, and makes links of the sections of the runbook that it names.
func linked(text string) template.HTML {
	return template.HTML(reference.ReplaceAllStringFunc( // it is escaped
		template.HTMLEscapeString(text), func(found string) string {
			name := reference.FindStringSubmatch(found)[1]
			return `Runbook: <a href="/runbook#` + strings.ToLower(name) + `">` + name + "</a>"
		}))
}
