package daemon

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
)

// newTestGroup has the CAs "first", which is well, and "second", whose token is gone.
func newTestGroup(t *testing.T) *Group {
	t.Helper()
	g := &Group{metrics: metrics.NewProcess()}
	for _, name := range []string{"first", "second"} {
		d := &Daemon{service: &config.Service{Config: &config.Config{Name: name}},
			health: newTestHealth(t)}
		g.metrics.Of(name).Registry.MustRegister(readiness{d.health})
		g.daemons = append(g.daemons, d)
	}
	g.daemons[0].health.signing.token.note(nil)
	g.daemons[1].health.signing.token.note(errors.New("it is gone"))
	return g
}

// The names of the CAs are in /readyz, in the line for the service manager, and in the metrics.
func TestCAsAreToldApart(t *testing.T) {
	g := newTestGroup(t)
	for path, c := range map[string]struct {
		code        int
		want, lacks string
	}{
		"/readyz":        {503, "[-] second/token: it is gone", "third"},
		"/readyz/first":  {200, "[+] first/token ok\n", "second"},
		"/readyz/second": {503, "second/leads true\n", "first"},
		"/readyz/third":  {404, "", "first"},
		"/livez":         {200, "ok", "first"},
	} {
		w := httptest.NewRecorder()
		g.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if body := w.Body.String(); w.Code != c.code || !strings.Contains(body, c.want) ||
			strings.Contains(body, c.lacks) {
			t.Errorf("%s: %d %s", path, w.Code, body)
		}
	}
	if state := g.State(); state != "first: ready; second: not ready: token: it is gone" {
		t.Errorf("the state is %q", state)
	}
	text := fixture.Scrape(g.metrics.Handler())
	for _, want := range []string{`hsm_signer_ready{ca="first",part="token"} 1`,
		`hsm_signer_ready{ca="second",part="token"} 0`, `hsm_signer_refusals_total{ca="first"} 0`,
		`hsm_signer_build_info{fips=`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing: %s", want, text)
		}
	}
}
