package status

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
)

var now = time.Date(2026, 11, 26, 3, 0, 0, 0, time.UTC)

const testRunbook = `# Runbook

First <b>, see [x](../a.yaml).

<!-- not shown -->
## HSMSignerDown

**Means.** Run ` + "`kubectl get <pod>`" + `, or [that](#hsmsignerdown), *now*.

- one
- **two ` + "`*x` and `y`" + `,
  3**
`

// The runbook is served as text in HTML, and the page links to its sections.
func TestRunbookIsServed(t *testing.T) {
	var text strings.Builder
	must.OK(t, get(t, wellPage(), "/runbook", "localhost").Write(&text))
	for _, want := range []string{"<p>First &lt;b&gt;, see x (../a.yaml).</p>",
		`<section id="hsmsignerdown">`, "<h2>HSMSignerDown</h2>", "<strong>Means.</strong>",
		"<code>kubectl get &lt;pod&gt;</code>", `<a href="#hsmsignerdown">that</a>`,
		"<em>now</em>",
		"<ul><li>one</li><li><strong>two <code>*x</code> and <code>y</code>,\n  3</strong></li></ul>"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, text.String())
		}
	}
	if strings.Contains(text.String(), "not shown") || strings.Contains(text.String(), "http:") {
		t.Errorf("it shows a comment, or refers elsewhere:\n%s", text.String())
	}
}

// wellPage is one on which all is well.
func wellPage() Page {
	return Page{
		Now: now, Started: now.Add(-time.Hour), Version: "hsm-signer v1",
		Signers: []string{"example.com/calico"}, Mode: "true", Leads: true,
		Parts: []Part{{Name: "API server"},
			{Name: "HSM"}}, Policy: "in force abc", Issued: make([]int, 60),
		CA: &CA{Subject: "CN=Calico CA", NotAfter: now.Add(400 * 24 * time.Hour), SHA256: "ab12"},
	}
}

func get(t *testing.T, p Page, path, host string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Host = host
	w := httptest.NewRecorder()
	Handler(func() Page { return p }, testRunbook).ServeHTTP(w, r)
	return w.Result()
}

func show(t *testing.T, p Page) string {
	t.Helper()
	response := get(t, p, "/", "localhost:8081")
	var text strings.Builder
	if err := response.Write(&text); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%v %s", err, text.String())
	}
	return text.String()
}

func TestPageSaysWhetherAllIsWell(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Page)
		want   []string
	}{
		"well": {func(*Page) {},
			[]string{`<body class="well">`, "All is well", "400 days left",
				"CA certificate of example.com/calico", `http-equiv="refresh"`, "Nobody has asked"}},
		"leader": {func(p *Page) { p.Identity, p.Leader = "a_1", "a_1" },
			[]string{`<dd>this one<span class="why">a_1</span></dd>`}},
		"alone": {func(*Page) {}, []string{"<dd>this one, without an election</dd>"}},
		"stand-by": {func(p *Page) { p.Leads, p.Identity, p.Leader = false, "a_1", "b_2" },
			[]string{`<body class="well">`, "another one leads",
				`another one; this one stands by<span class="why">b_2</span>`, "It stands by"}},
		"no leader": {func(p *Page) { p.Leads, p.Identity = false, "a_1" },
			[]string{`<body class="well">`, "this one does not lead",
				"not known; this one stands by</dd>"}},
		"one part": {func(p *Page) {
			p.Parts[1] = Part{Name: "HSM", Fault: "the token is gone",
				Do: "plug it in"}
		},
			[]string{`<body class="bad">`, "Not well: HSM", "the token is gone", "plug it in",
				"stay pending"}},
		"since": {func(p *Page) {
			p.Parts[1] = Part{Name: "HSM", Fault: "gone", Since: now.Add(-3 * time.Minute),
				Do: "docs/runbook.md: HSMSignerTokenUnavailable"}
		}, []string{"02:57:00 UTC</time>, 3 minutes ago", "since 02:57 UTC",
			`Runbook: <a href="/runbook#hsmsignertokenunavailable">HSMSignerTokenUnavailable</a>`}},
		"open": {func(p *Page) {
			p.Open = &Open{States: []OpenState{{"failing", 48, true}, {"pending", 2, false}},
				Oldest: now.Add(-70 * time.Second), Unanswered: 65 * time.Second}
		}, []string{"Open requests: 50", `<div class="bad"><dt>failing</dt><dd>48</dd></div>`,
			"<dt>Oldest</dt><dd>1 minute ago</dd>", "<dt>No answer for</dt><dd>1 minute</dd>",
			"<dt>Last answer</dt><dd>none yet</dd>"}},
		"none open": {func(p *Page) { p.Open = &Open{LastAnswer: now.Add(-time.Minute)} },
			[]string{"Open requests: 0", "<dt>Last answer</dt><dd>1 minute ago</dd>"}},
		"two parts": {func(p *Page) {
			p.Parts = []Part{{Name: "HSM", Fault: "a"},
				{Name: "Journal", Fault: "b"}}
		}, []string{"Not well: HSM and Journal"}},
		"hint": {func(p *Page) { p.Hints = []string{"the CA ends"} },
			[]string{`<body class="look">`, "something needs you", "the CA ends"}},
		"ending": {func(p *Page) {
			p.Ending = []Ending{{"DaemonSet calico-system/calico-node",
				[]string{"a", "b", "c", "d",
					"e"}, 0, now.Add(50 * time.Hour),
				"kubectl -n calico-system rollout restart daemonset/calico-node"}}
		}, []string{`<body class="look">`, "in 2 days", "a, b, c and 2 more",
			"<code>kubectl -n calico-system rollout restart daemonset/calico-node</code>"}},
		"ended": {func(p *Page) {
			p.Ending = []Ending{{Workload: "w", Pods: []string{"a", "b"}, Dark: 1,
				First: now.Add(-3 * time.Hour)}}
		}, []string{`<body class="look">`, ` class="dark">ended 3 hours ago`,
			`<strong class="bad">1 of 2 dark:</strong> a, b`}},
		"shadow": {func(p *Page) { p.Mode, p.CA = "shadow", nil },
			[]string{"A shadow", "none: a shadow acts on nothing</dd>"}},
		"chart": {func(p *Page) { p.Issued[58], p.Issued[59] = 4, 8 },
			[]string{"12 in all, 8 at most", `height="96"`, `height="48"`,
				"<th scope=\"row\">02:59</th><td>4</td>"}},
	} {
		p := wellPage()
		c.change(&p)
		text := show(t, p)
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q is missing in:\n%s", name, want, text)
			}
		}
	}
}

func TestWhatRequestersWriteIsEscaped(t *testing.T) {
	const evil = `"><script>alert(1)</script>`
	p := wellPage()
	p.Decisions = []Decision{{At: now, Result: "refused", Request: evil, Requester: evil,
		Rule: evil, Reason: evil}}
	p.Ending = []Ending{{Workload: evil, Pods: []string{evil}, First: now, Restart: evil}}
	p.Parts = []Part{{Name: evil, Fault: evil, Do: evil, Note: evil}}
	p.Hints = []string{evil}
	if text := show(t, p); strings.Contains(text, "<script") ||
		strings.Count(text, "&lt;script&gt;") < 10 {
		t.Errorf("not escaped:\n%s", text)
	}
}

func TestHeadersLetNothingIn(t *testing.T) {
	for _, path := range []string{"/", "/style.css", "/runbook"} {
		response := get(t, wellPage(), path, "localhost")
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; style-src 'self'",
			"X-Content-Type-Options":  "nosniff", "X-Frame-Options": "DENY",
			"Cache-Control": "no-store",
		} {
			if got := response.Header.Get(name); response.StatusCode != http.StatusOK ||
				!strings.HasPrefix(got, want) {
				t.Errorf("%s: %s: %s is %q", path, response.Status, name, got)
			}
		}
	}
	if text := show(t, wellPage()); strings.Contains(text, "<script") ||
		strings.Contains(text, " style=") || strings.Contains(text, "http:") {
		t.Errorf("the page has scripts, styles of its own or addresses elsewhere:\n%s", text)
	}
}

func TestOnlyReading(t *testing.T) {
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		r := httptest.NewRequest(method, "/", strings.NewReader("x"))
		r.Host = "localhost"
		w := httptest.NewRecorder()
		Handler(wellPage, testRunbook).ServeHTTP(w, r)
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", method, w.Code)
		}
	}
}
