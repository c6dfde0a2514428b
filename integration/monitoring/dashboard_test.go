package monitoring_test

import (
	"encoding/json"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
)

const dashboardFile = "../../deploy/monitoring/dashboard.json"

type target struct {
	Expr    string
	Instant bool
}

// A panel of the dashboard, as far as it is checked here.
type panel struct {
	Title       string
	Targets     []target
	FieldConfig struct {
		Defaults struct {
			Thresholds struct {
				Steps []struct {
					Color string
					Value *float64
				}
			}
		}
	}
}

// color returns the color of the value, as Grafana chooses it: that of the last step that it
// reaches.
func (p panel) color(value float64) (color string) {
	for _, step := range p.FieldConfig.Defaults.Thresholds.Steps {
		if step.Value == nil || value >= *step.Value {
			color = step.Color
		}
	}
	return color
}

func readDashboard(t *testing.T) (panels []panel, variables []string) {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels     []panel
		Templating struct{ List []struct{ Name string } }
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, variable := range dashboard.Templating.List {
		variables = append(variables, variable.Name)
	}
	return dashboard.Panels, variables
}

// Every query selects by the variables of the dashboard, in each of its selectors.
func TestDashboardSelectsInstallations(t *testing.T) {
	panels, variables := readDashboard(t)
	if got := strings.Join(variables, " "); got != "datasource cluster namespace signer ca" {
		t.Errorf("the variables are %s", got)
	}
	for _, p := range panels {
		for _, target := range p.Targets {
			expr, err := parser.NewParser(parser.Options{}).ParseExpr(target.Expr)
			if err != nil {
				t.Errorf("%s: %s: %v", p.Title, target.Expr, err)
				continue
			}
			for _, selector := range parser.ExtractSelectors(expr) {
				requireVariables(t, p.Title, selector)
			}
		}
	}
}

func requireVariables(t *testing.T, title string, selector []*labels.Matcher) {
	t.Helper()
	values := map[string]string{}
	for _, m := range selector {
		values[m.Name] = m.Value
	}
	variables := []string{"cluster", "namespace", "signer", "ca"}
	if values["__name__"] == "hsm_signer_build_info" { // of the process
		variables = variables[:3]
	}
	for _, name := range variables {
		if values[name] != "$"+name {
			t.Errorf("%s: %v does not select by $%s", title, selector, name)
		}
	}
}

// now evaluates a query for all installations, an hour after the first scrape, and returns the
// value for each installation.
func now(t *testing.T, expr, load string) map[string]float64 {
	t.Helper()
	for _, name := range []string{"cluster", "namespace", "signer", "ca"} {
		expr = strings.ReplaceAll(expr, "$"+name, ".*")
	}
	engine := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
	samples, err := rules.EngineQueryFunc(engine, promqltest.LoadedStorage(t, load))(t.Context(),
		expr, time.Unix(0, 0).Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, s := range samples {
		values[s.Metric.Get("namespace")+" "+s.Metric.Get("signer")+s.Metric.Get("ca")] = s.F
	}
	return values
}

// An installation that is no longer scraped is red: an instant query has no value of it, where a
// range query has the last one. Leaders are added within an installation only.
func TestInstallationThatIsGoneIsRed(t *testing.T) {
	const load = `load 1m
  hsm_signer_ready{namespace="a",signer="s",part="token"} 1x60
  hsm_signer_ready{namespace="b",signer="s",part="token"} 1x30 stale
  hsm_signer_ready{namespace="b",signer="u",part="token"} 0x60
  hsm_signer_leading{namespace="a",signer="s"} 1x60
  hsm_signer_leading{namespace="b",signer="s"} 1x30 stale
  hsm_signer_leading{namespace="b",signer="u",instance="0"} 1x60
  hsm_signer_leading{namespace="b",signer="u",instance="1"} 1x60
`
	want := map[string]map[string]float64{
		"Healthy": {"a s": 1, "b s": -1, "b u": 0},
		"Leaders": {"a s": 1, "b s": 0, "b u": 2},
	}
	panels, _ := readDashboard(t)
	for _, p := range panels {
		if want[p.Title] == nil {
			continue
		}
		if got := now(t, p.Targets[0].Expr, load); !maps.Equal(got, want[p.Title]) {
			t.Errorf("%s shows %v; want %v", p.Title, got, want[p.Title])
		}
		delete(want, p.Title)
		if !p.Targets[0].Instant || p.color(-1) != "red" || p.color(0) != "red" {
			t.Errorf("%s: instant: %v; -1 is %s, 0 is %s",
				p.Title, p.Targets[0].Instant, p.color(-1),
				p.color(0))
		}
	}
	if len(want) > 0 {
		t.Errorf("no panel shows %v", want)
	}
}

// One leader is green. None is not, nor are two.
func TestOnlyOneLeaderIsGreen(t *testing.T) {
	panels, _ := readDashboard(t)
	for _, p := range panels {
		if p.Title != "Leaders" {
			continue
		}
		for leaders, want := range []string{"red", "green", "red", "red"} {
			if got := p.color(float64(leaders)); got != want {
				t.Errorf("%d leaders are %s; want %s", leaders, got, want)
			}
		}
		return
	}
	t.Error("no panel shows the leaders")
}
