package e2e

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"hsm-signer/integration/must"
)

// only returns the metrics whose names begin with one of the prefixes.
func only(metrics string, prefixes ...string) string {
	return strings.Join(regexp.MustCompile(`(?m)^(# \w+ )?hsm_signer_(`+
		strings.Join(prefixes, "|")+`)_.*\n`).FindAllString(metrics, -1), "")
}

// Every metric in an alert, the dashboard or the manual exists, the manual has all of them, and
// their names follow Prometheus' conventions.
func TestEveryMetricThatIsWatchedExists(t *testing.T) {
	const manual = "docs/operate.md"
	d := startReady(t, ca, "TRUST_BUNDLE_FILE="+ca.CertFile)
	askInVain(t)
	requireIssues(t)
	waitMetrics(t, d, "\nhsm_signer_certificates_in_cluster", "\nhsm_signer_stuck_pods")
	metrics := d.Metrics(t.Context())
	healer := startHealer(t)
	waitMetrics(t, healer, "\nhsm_signer_heal_stuck_pods")
	metrics += only(healer.Metrics(t.Context()), "heal")
	r := newRotating(t, "metrics")
	rotating := startReady(t, ca, r.both()...)
	waitMetrics(t, rotating, "\nhsm_signer_rotation_phase{", "\nhsm_signer_live_certificates{")
	metrics += only(rotating.Metrics(t.Context()), "rotation", "live")
	for _, file := range []string{"deploy/monitoring/prometheusrule.yaml",
		"deploy/monitoring/prometheusrule-installation.yaml", "deploy/monitoring/dashboard.json",
		manual} {
		text := must.Get(os.ReadFile("../../" + file))(t)
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
	text := must.Get(os.ReadFile("../../" + manual))(t)
	for _, line := range regexp.MustCompile(`(?m)^# TYPE (hsm_signer_\S+)`).
		FindAllStringSubmatch(metrics, -1) {
		if !strings.Contains(string(text), "`"+line[1]+"`") {
			t.Errorf("%s does not name %s", manual, line[1])
		}
	}
	problems := must.Get(promlint.New(strings.NewReader(metrics)).Lint())(t)
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
	if series := regexp.MustCompile(`(?m)^hsm_signer_`).FindAllStringIndex(metrics,
		-1); len(series) > 200 {
		t.Errorf("there are %d series", len(series))
	}
}

// The installation's names are in what monitoring needs to know of them, also in another namespace.
func TestMonitoringKnowsItsInstallation(t *testing.T) {
	dir := deployment(t, "network-hsm", func(kustomization string) string {
		kustomization = strings.Replace(kustomization, "SIGNER_NAME=example.com/calico",
			"SIGNER_NAME=corp.example/typha", 1)
		kustomization = with("heal")(withMonitoring(kustomization))
		return strings.Replace(kustomization, "patches:\n", `namespace: other
patches:
  - patch: |
      apiVersion: v1
      kind: ConfigMap
      metadata: {name: hsm-signer-monitoring, namespace: hsm-signer}
      data: {RUNBOOK: "https://wiki.example.com/runbook"}
`, 1)
	})
	text, _ := kubectl(t, "kustomize", dir)
	for _, want := range []string{
		`absent(hsm_signer_ready{part="token",namespace="other",job="hsm-signer"})`,
		"runbook_url: https://wiki.example.com/runbook#hsmsignerdown",
		"runbook_url: https://wiki.example.com/runbook#hsmsignernoleader",
		"signer: corp.example/typha",
		"- replacement: corp.example/typha\n      targetLabel: signer",
		"- replacement: hsm-signer\n      targetLabel: job",
		"- replacement: hsm-signer-heal\n      targetLabel: job",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("kustomize does not print %q", want)
		}
	}
	for _, not := range []string{"git.example.com", "name: hsm-signer-monitoring",
		"example.com/calico"} {
		if strings.Contains(text, not) {
			t.Errorf("kustomize prints %q", not)
		}
	}
}
