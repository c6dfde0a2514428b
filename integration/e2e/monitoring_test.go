package e2e

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"hsm-signer/integration/must"
)

// healsOwn returns the metrics that only heal has.
func healsOwn(metrics string) string {
	return strings.Join(regexp.MustCompile(`(?m)^(# \w+ )?hsm_signer_heal_.*\n`).
		FindAllString(metrics, -1), "")
}

// Every metric in an alert, the dashboard or the manual exists, the manual has all of them, and
// their names follow Prometheus' conventions.
func TestEveryMetricThatIsWatchedExists(t *testing.T) {
	const manual = "docs/operate.md"
	d := startReady(t, ca)
	askInVain(t)
	node := components()[0]
	p := newPod(t, node, nextIP())
	requireCertificate(t, p, p.InitContainer(node))
	must.Eventually(t, "the certificates to be counted", func(ctx context.Context) (bool, error) {
		return strings.Contains(d.Metrics(ctx), "\nhsm_signer_certificates_in_cluster") &&
			strings.Contains(d.Metrics(ctx), "\nhsm_signer_stuck_pods"), nil
	})
	metrics := d.Metrics(t.Context())
	healer := startHealer(t)
	must.Eventually(t, "heal to have looked", func(ctx context.Context) (bool, error) {
		return strings.Contains(healer.Metrics(ctx), "\nhsm_signer_heal_stuck_pods"), nil
	})
	metrics += healsOwn(healer.Metrics(t.Context()))
	for _, file := range []string{"deploy/monitoring/prometheusrule.yaml",
		"deploy/monitoring/dashboard.json", manual} {
		text, err := os.ReadFile("../../" + file)
		must.OK(t, err)
		names := regexp.MustCompile(`\bhsm_signer_[a-z0-9_]+`).FindAllString(string(text), -1)
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			if !strings.Contains(metrics, "\n"+name+"{") &&
				!strings.Contains(metrics, "\n"+name+" ") &&
				!strings.Contains(metrics, "# TYPE "+name+" ") && name != "hsm_signer_" {
				t.Errorf("%s queries %s, which does not exist", file, name)
			}
		}
	}
	text, err := os.ReadFile("../../" + manual)
	must.OK(t, err)
	for _, line := range regexp.MustCompile(`(?m)^# TYPE (hsm_signer_\S+)`).
		FindAllStringSubmatch(metrics, -1) {
		if !strings.Contains(string(text), "`"+line[1]+"`") {
			t.Errorf("%s does not name %s", manual, line[1])
		}
	}
	problems, err := promlint.New(strings.NewReader(metrics)).Lint()
	must.OK(t, err)
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
	if series := regexp.MustCompile(`(?m)^hsm_signer_`).FindAllStringIndex(metrics,
		-1); len(series) > 200 {
		t.Errorf("there are %d series", len(series))
	}
}
