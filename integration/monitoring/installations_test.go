package monitoring_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
)

// unitTests is a file for "promtool test rules", as far as it is used here.
type unitTests struct {
	RuleFiles          []string `json:"rule_files"`
	EvaluationInterval string   `json:"evaluation_interval"`
	Tests              []struct {
		Name        string
		Interval    string
		InputSeries []struct{ Series, Values string } `json:"input_series"`
		AlertTests  []alertTest                       `json:"alert_rule_test"`
	}
}

type alertTest struct {
	EvalTime  string `json:"eval_time"`
	Alertname string
	ExpAlerts []struct {
		Labels      map[string]string `json:"exp_labels"`
		Annotations map[string]string `json:"exp_annotations"`
	} `json:"exp_alerts"`
}

// want returns a line for each alert that is expected.
func (a alertTest) want() (lines []string) {
	for _, alert := range a.ExpAlerts {
		alert.Labels["alertname"] = a.Alertname
		lines = append(lines, describe(alert.Labels, alert.Annotations))
	}
	return slices.Sorted(slices.Values(lines))
}

func describe(of ...map[string]string) (line string) {
	for _, values := range of {
		for _, name := range slices.Sorted(maps.Keys(values)) {
			line += fmt.Sprintf("%s=%q ", name, values[name])
		}
	}
	return line
}

// installationRules returns all alerts, with those on the absence of two installations.
func installationRules(t *testing.T) (all []monitoringv1.Rule) {
	t.Helper()
	var shared monitoringv1.PrometheusRule
	read(t, rulesFile, &shared)
	for _, group := range shared.Spec.Groups {
		all = append(all, group.Rules...)
	}
	for _, name := range []string{"healthy", "faulty"} {
		var own monitoringv1.PrometheusRule
		read(t, installationFile, &own)
		rule := own.Spec.Groups[0].Rules[0]
		rule.Expr.StrVal = strings.Replace(rule.Expr.StrVal, `namespace="hsm-signer"`,
			`namespace="`+name+`"`, 1)
		rule.Labels["signer"] = "example.com/" + name
		all = append(all, rule)
	}
	return all
}

// Two installations under one Prometheus, of which one is faulty: each alert names that one only.
// The file is one for promtool, whose engine evaluates it here.
func TestInstallationsHaveTheirOwnAlerts(t *testing.T) {
	var file unitTests
	read(t, "testdata/installations.yaml", &file)
	all := installationRules(t)
	for _, test := range file.Tests {
		t.Run(test.Name, func(t *testing.T) {
			load := "load 1m\n"
			for _, s := range test.InputSeries {
				load += "  " + s.Series + " " + s.Values + "\n"
			}
			for _, a := range test.AlertTests {
				got := firing(t, all, load, a)
				if want := a.want(); !slices.Equal(got, want) {
					t.Errorf("%s at %s: firing are\n%s\nwant\n%s", a.Alertname, a.EvalTime,
						strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			}
		})
	}
}

// firing evaluates the alerts of the name each minute until the test's time, and returns a line for
// each that fires then.
func firing(t *testing.T, all []monitoringv1.Rule, load string, a alertTest) (lines []string) {
	t.Helper()
	until, err := model.ParseDuration(a.EvalTime)
	if err != nil {
		t.Fatal(err)
	}
	storage := promqltest.LoadedStorage(t, load)
	engine := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
	query := rules.EngineQueryFunc(engine, storage)
	for _, r := range all {
		if r.Alert != a.Alertname {
			continue
		}
		alert := alertingRule(t, r)
		for at := time.Duration(0); at <= time.Duration(until); at += time.Minute {
			if _, err := alert.Eval(t.Context(), 0, time.Unix(0, 0).Add(at), query, nil,
				0); err != nil {
				t.Fatal(err)
			}
		}
		for _, active := range alert.ActiveAlerts() {
			if active.State == rules.StateFiring {
				lines = append(lines, describe(active.Labels.Map(), active.Annotations.Map()))
			}
		}
	}
	return slices.Sorted(slices.Values(lines))
}
