package monitoring_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

const dashboardFile = "../../deploy/monitoring/dashboard.json"

// A panel of the dashboard, as far as it is checked here.
type panel struct {
	Title       string
	Targets     []struct{ Expr string }
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
	if got := strings.Join(variables, " "); got != "datasource cluster namespace signer" {
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
	for _, name := range []string{"cluster", "namespace", "signer"} {
		if values[name] != "$"+name {
			t.Errorf("%s: %v does not select by $%s", title, selector, name)
		}
	}
}

// One leader is green. None is not, nor are two.
func TestOnlyOneLeaderIsGreen(t *testing.T) {
	panels, _ := readDashboard(t)
	for _, p := range panels {
		if p.Title != "Leaders" {
			continue
		}
		if !strings.Contains(p.Targets[0].Expr, "sum by (cluster, namespace, job)") {
			t.Errorf("leaders of several installations are added: %s", p.Targets[0].Expr)
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
