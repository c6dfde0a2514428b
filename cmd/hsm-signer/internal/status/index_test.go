package status

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// The list of CAs names those that are not well, and links to the page of each.
func TestIndexOfCAs(t *testing.T) {
	bad, look := wellPage(), wellPage()
	bad.Parts = []Part{{Name: "HSM", Fault: "it is <gone>"}}
	look.Hints = []string{"the CA ends"}
	for _, c := range []struct {
		second     Page
		mood, head string
	}{
		{wellPage(), "well", "All is well"},
		{look, "look", "All CAs work, and something needs you: second"},
		{bad, "bad", "Not well: second"},
	} {
		handler := IndexHandler([]Source{{"first", wellPage},
			{"second", func() Page { return c.second }}}, testRunbook)
		for path, wants := range map[string][]string{
			"/": {`<body class="` + c.mood + `">`, c.head, `<a href="/ca/first">first</a>`,
				`<a href="/">Look again</a>`, "400 days left"},
			"/ca/second": {"second: ", `<a href="/">All CAs of this process</a>`,
				`<a href="/ca/second">Look again</a>`},
			"/runbook":   {"<h1>Runbook</h1>"},
			"/style.css": {"body"},
		} {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			for _, want := range wants {
				if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), want) ||
					w.Header().Get("X-Frame-Options") != "DENY" {
					t.Errorf("%s of %s: %d, want %q in:\n%s", path, c.mood, w.Code, want, w.Body)
				}
			}
		}
	}
}
