package daemon

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/credential"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/health"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/service"
	"hsm-signer/kube"
)

// A testPart of a CA is well unless it has a fault.
type testPart struct{ fault error }

func (p testPart) Ready() error                { return p.fault }
func (testPart) Permitted() error              { return nil }
func (testPart) Leads() bool                   { return true }
func (testPart) Leader() string                { return "" }
func (testPart) Open() kube.Open               { return kube.Open{} }
func (testPart) State() string                 { return "" }
func (testPart) Refusal() error                { return nil }
func (testPart) Expiries() []credential.Expiry { return nil }

// newTestGroup has the CAs "first", which is well, and "second", which does not watch its requests.
func newTestGroup(t *testing.T) *Group {
	t.Helper()
	g := &Group{metrics: metrics.NewProcess()}
	for _, c := range []struct {
		name  string
		fault error
	}{{"first", nil}, {"second", errors.New("they are gone")}} {
		h := &health.Health{Controller: testPart{c.fault}, Credential: testPart{},
			Policy: testPart{}}
		g.daemons = append(g.daemons, &Daemon{
			service: &service.Service{Config: &config.Config{Name: c.name}}, health: h})
		g.metrics.Of(c.name).Registry.MustRegister(metrics.HealthCollector{Health: h})
	}
	return g
}

// The names of the CAs are in /readyz, in the line for the service manager, and in the metrics.
func TestCAsAreToldApart(t *testing.T) {
	g := newTestGroup(t)
	for path, c := range map[string]struct {
		code        int
		want, lacks string
	}{
		"/readyz":        {503, "[-] second/requests: they are gone", "third"},
		"/readyz/first":  {200, "[+] first/requests ok\n", "second"},
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
	if state := g.State(); state != "first: ready; second: not ready: requests: they are gone" {
		t.Errorf("the state is %q", state)
	}
	text := fixture.Scrape(g.metrics.Handler())
	for _, want := range []string{`hsm_signer_ready{ca="first",part="requests"} 1`,
		`hsm_signer_ready{ca="second",part="requests"} 0`, `hsm_signer_refusals_total{ca="first"} 0`,
		`hsm_signer_build_info{fips=`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing: %s", want, text)
		}
	}
}
