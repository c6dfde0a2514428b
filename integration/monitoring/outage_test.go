package monitoring_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
)

// outageRule returns the alert on an outage, and how often its group is evaluated.
func outageRule(t *testing.T) (monitoringv1.Rule, time.Duration) {
	t.Helper()
	var file monitoringv1.PrometheusRule
	read(t, rulesFile, &file)
	for _, group := range file.Spec.Groups {
		for _, r := range group.Rules {
			if r.Alert != "HSMSignerUnanswered" {
				continue
			}
			interval, err := model.ParseDuration(string(*group.Interval))
			if err != nil {
				t.Fatal(err)
			}
			return r, time.Duration(interval)
		}
	}
	t.Fatal("there is no alert on an outage")
	return monitoringv1.Rule{}, 0
}

// A timeline is the number of seconds without an answer in each second.
type timeline func(second int) int

// seconds is how long a timeline is.
const seconds = 300

// firstFiring returns the second in which the alert first fires; -1: in none. The first scrape and
// the first evaluation are in these seconds.
func firstFiring(t *testing.T, values timeline, scrape, firstScrape, firstEval int) int {
	t.Helper()
	r, interval := outageRule(t)
	series := make([]string, seconds)
	for s := range series {
		series[s] = "_"
		if s >= firstScrape && (s-firstScrape)%scrape == 0 {
			series[s] = fmt.Sprint(values(s))
		}
	}
	storage := promqltest.LoadedStorage(t, "load 1s\n  hsm_signer_unanswered_seconds "+
		strings.Join(series, " ")+"\n")
	query := rules.EngineQueryFunc(promqltest.NewTestEngine(t, false, 0,
		promqltest.DefaultMaxSamplesPerQuery), storage)
	alert := alertingRule(t, r)
	for s := firstEval; s < seconds; s += int(interval.Seconds()) {
		if _, err := alert.Eval(t.Context(), 0, time.Unix(int64(s), 0), query, nil,
			0); err != nil {
			t.Fatal(err)
		}
		for _, active := range alert.ActiveAlerts() {
			if active.State == rules.StateFiring {
				return s
			}
		}
	}
	return -1
}

// The alert on an outage fires as early as docs/operate.md says, whenever Prometheus scrapes and
// evaluates.
func TestAnOutageIsReportedInTime(t *testing.T) {
	const outage = 100
	for scrape, limit := range map[int]int{15: 40, 30: 55} {
		latest := 0
		for firstScrape := range scrape {
			for firstEval := 0; firstEval < 10; firstEval += 3 {
				at := firstFiring(t, func(s int) int { return max(0, s-outage) }, scrape,
					firstScrape, firstEval)
				if at < 0 {
					t.Fatal("it does not fire")
				}
				latest = max(latest, at-outage)
			}
		}
		if latest > limit || latest < limit-5 {
			t.Errorf("scraped every %d s, it fires within %d s; want %d", scrape, latest, limit)
		}
	}
}

// It stays quiet while nothing is open, and while a slow HSM answers one request after the other.
func TestASlowStreamIsNoOutage(t *testing.T) {
	for name, values := range map[string]timeline{
		"idle":          func(int) int { return 0 },
		"slow stream":   func(s int) int { return s % 14 },
		"once a minute": func(s int) int { return max(0, s%60-50) },
	} {
		for firstScrape := range 15 {
			if at := firstFiring(t, values, 15, firstScrape, 0); at >= 0 {
				t.Errorf("%s: it fires after %d s", name, at)
			}
		}
	}
}
