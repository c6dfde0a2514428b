// Package monitoring_test puts the alerts before Prometheus' own engine: each fires when it should,
// and not otherwise, and each has its section in the runbook.
package monitoring_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	"sigs.k8s.io/yaml"
)

const (
	rulesFile        = "../../deploy/monitoring/prometheusrule.yaml"
	installationFile = "../../deploy/monitoring/prometheusrule-installation.yaml"
	runbookFile      = "../../docs/runbook.md"
	operatorAPI      = "monitoring.coreos.com/v1"
)

// read reads an object of Prometheus' operator. Unknown fields are errors.
func read(t *testing.T, file string, object any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, object); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// readRules returns the alerts of both files.
func readRules(t *testing.T) (all []monitoringv1.Rule) {
	t.Helper()
	for _, name := range []string{rulesFile, installationFile} {
		var file monitoringv1.PrometheusRule
		read(t, name, &file)
		if file.APIVersion != operatorAPI || file.Kind != "PrometheusRule" ||
			len(file.Spec.Groups) == 0 {
			t.Fatalf("%s: a %s %s", name, file.APIVersion, file.Kind)
		}
		for _, g := range file.Spec.Groups {
			all = append(all, g.Rules...)
		}
	}
	return all
}

// day is in seconds.
const day = 86400

// cases has, for each alert, series that are scraped each minute for two hours from 1970 on: those
// with which the alert fires, and those with which it does not.
var cases = map[string]struct{ fires, quiet []string }{
	"HSMSignerDown": {
		[]string{`up 1x120`, `hsm_signer_leading 0x120`,
			`hsm_signer_ready{part="token",namespace="other",job="hsm-signer"} 1x120`,
			`hsm_signer_ready{part="token",namespace="hsm-signer",job="hsm-signer"} 1x60 stale`},
		[]string{`hsm_signer_ready{part="token",namespace="hsm-signer",job="hsm-signer"} 0x120`,
			`hsm_signer_ready{part="token",namespace="hsm-signer",job="hsm-signer"} 0x50 _x4 0x60`}},
	"HSMSignerManyLeaders": {
		[]string{"hsm_signer_leading{instance=\"a\"} 1x120\n  hsm_signer_leading{instance=\"b\"} 1x120"},
		[]string{"hsm_signer_leading{instance=\"a\"} 1x120\n  hsm_signer_leading{instance=\"b\"} 0x120",
			"hsm_signer_leading{instance=\"a\"} 1x60 0x60\n  hsm_signer_leading{instance=\"b\"} 0x59 1x61",
			"hsm_signer_leading{namespace=\"a\"} 1x120\n  hsm_signer_leading{namespace=\"b\"} 1x120"}},
	"HSMSignerNoLeader": {[]string{`hsm_signer_leading{instance="a"} 0x120`},
		[]string{`hsm_signer_leading{instance="a"} 1x120`, `hsm_signer_leading 1x50 0x1 1x60`}},
	"HSMSignerUnanswered": {
		[]string{`hsm_signer_unanswered_seconds{instance="a"} 0x60 16x1 0x58`},
		[]string{`hsm_signer_unanswered_seconds 0x120`, `hsm_signer_unanswered_seconds 15x120`}},
	"HSMSignerNotReady": {[]string{`hsm_signer_ready{part="requests"} 0x120`,
		`hsm_signer_ready{part="permissions"} 0x120`,
		`hsm_signer_ready{part="clock"} 0x120`}, []string{`hsm_signer_ready{part="requests"} 1x120`,
		`hsm_signer_ready{part="token"} 0x120`}},
	"HSMSignerTokenUnavailable": {[]string{`hsm_signer_ready{part="token"} 0x120`},
		[]string{`hsm_signer_ready{part="token"} 1x120`,
			`hsm_signer_ready{part="token"} 1x50 0x1 1x60`}},
	"HSMSignerTokenHangs": {[]string{`hsm_signer_token_calls_hanging 2x120`},
		[]string{`hsm_signer_token_calls_hanging 0x120`}},
	"HSMSignerTokenFlaps": {[]string{`hsm_signer_token_connections_total 0+1x120`},
		[]string{`hsm_signer_token_connections_total 1x60 2x60`}},
	"HSMSignerJournalRolledBack": {
		[]string{`hsm_signer_journal_rolled_back 0x60 1x60`,
			`hsm_signer_journal_rollback_suspected 0x60 1x60`},
		[]string{`hsm_signer_journal_rolled_back 0x120`,
			`hsm_signer_journal_rollback_suspected 0x120`},
	},
	"HSMSignerJournalNotWritable": {[]string{`hsm_signer_ready{part="journal"} 0x120`},
		[]string{`hsm_signer_ready{part="journal"} 1x120`}},
	"HSMSignerJournalNearLimit": {
		[]string{"hsm_signer_journal_requests 81x120\n  hsm_signer_journal_requests_limit 100x120",
			"hsm_signer_journal_unpublished 9x120\n  hsm_signer_journal_unpublished_limit 10x120"},
		[]string{"hsm_signer_journal_requests 79x120\n  hsm_signer_journal_requests_limit 100x120",
			"hsm_signer_journal_unpublished 1x50 9x5 1x60\n  hsm_signer_journal_unpublished_limit 10x120"},
	},
	"HSMSignerFaults": {[]string{`hsm_signer_faults_total 0+2x120`},
		[]string{`hsm_signer_faults_total 0x60 3x60`}},
	"HSMSignerSlow": {
		[]string{"hsm_signer_request_duration_seconds_bucket{le=\"45\"} 0x120\n  " +
			"hsm_signer_request_duration_seconds_bucket{le=\"90\"} 0+1x120\n  " +
			"hsm_signer_request_duration_seconds_bucket{le=\"+Inf\"} 0+1x120"},
		[]string{"hsm_signer_request_duration_seconds_bucket{le=\"1\"} 0+1x120\n  " +
			"hsm_signer_request_duration_seconds_bucket{le=\"+Inf\"} 0+1x120",
			`hsm_signer_request_duration_seconds_bucket{le="+Inf"} 0x120`},
	},
	"HSMSignerManyRequests": {
		[]string{`hsm_signer_requests_in_cluster 2001x120`,
			`hsm_signer_requests_in_cluster 0x60 6000x60`},
		[]string{`hsm_signer_requests_in_cluster 2000x120`,
			`hsm_signer_requests_in_cluster 0x60 6000x9 0x60`,
			`hsm_signer_requests_in_cluster 6000x5 _x115`},
	},
	"HSMSignerPodsStuck": {
		// the second runs for a moment in between
		[]string{`hsm_signer_stuck_pods 2x120`,
			`hsm_signer_stuck_pods 0x50 1x3 0x1 1x3 0x1 1x3 0x1 1x3 0x60`},
		// healed
		[]string{`hsm_signer_stuck_pods 0x120`, `hsm_signer_stuck_pods 0x50 1x1 0x60`,
			`hsm_signer_stuck_pods 0x50 1x1 stale _x60`},
	},
	"HSMSignerOverBudget": {[]string{`hsm_signer_over_budget_total 0+1x120`},
		[]string{`hsm_signer_over_budget_total 5x120`}},
	"HSMSignerRefusalsHeld": {
		[]string{`hsm_signer_open_requests{state="refusal_held"} 0x60 3x60`},
		[]string{`hsm_signer_open_requests{state="refusal_held"} 0x120`,
			`hsm_signer_open_requests{state="waiting"} 3x120`}},
	"HSMSignerManyRefused": {[]string{`hsm_signer_refusals_total 0+1x120`,
		`hsm_signer_refusals_total 0x60 50x60`}, []string{`hsm_signer_refusals_total 0x60 3x60`}},
	"HSMSignerRefusedAgainAndAgain": {
		[]string{`hsm_signer_refusals_total 0x9 1x9 2x9 3x9 4x9 5x9 6x9 7x50`},
		[]string{`hsm_signer_refusals_total 0x60 9x60`, `hsm_signer_refusals_total 7x120`}},
	"HSMSignerReplicaGone": {[]string{`hsm_signer_ready{part="token",instance="a"} 1x100`},
		[]string{`hsm_signer_ready{part="token",instance="a"} 1x1700`,
			`hsm_signer_ready{part="token",instance="a"} 1x60 _x10 1x1700`}},
	"HSMSignerPolicyFileRefused": {[]string{`hsm_signer_policy_file_refused 1x120`},
		[]string{`hsm_signer_policy_file_refused 0x120`}},
	"HSMSignerForeignCertificate": {
		[]string{`hsm_signer_certificates_in_cluster{origin="foreign"} 0x60 1x60`,
			`hsm_signer_certificates_in_cluster{origin="unrecorded"} 1x120`},
		[]string{`hsm_signer_certificates_in_cluster{origin="own"} 7x120`,
			`hsm_signer_certificates_in_cluster{origin="another_journal"} 7x120`,
			`hsm_signer_certificates_in_cluster{origin="foreign"} 0x120`},
	},
	"HSMSignerExtractableKeyAllowed": {[]string{`hsm_signer_extractable_key_allowed 1x120`},
		[]string{`hsm_signer_extractable_key_allowed 0x120`}},
	"HSMSignerCAExpiring": {notAfter(80 * day), notAfter(100 * day)},
	"HSMSignerCAEnds": {append(notAfter(10*day), notAfter(60)...),
		notAfter(80 * day)},
	"HSMSignerCAFileRefused": {[]string{`hsm_signer_ca_file_refused 1x120`},
		[]string{`hsm_signer_ca_file_refused 0x120`}},
	"HSMSignerTrustBundle": {[]string{`hsm_signer_trust_bundle_published 0x120`,
		`hsm_signer_trust_bundle_file_refused 1x120`},
		[]string{`hsm_signer_trust_bundle_published 1x120`,
			`hsm_signer_trust_bundle_file_refused 0x120`}},
	"HSMSignerCredentialExpiring": {append(credential("86400x120", 10*day),
		credential("100000x120", 12*day)...), append(credential("86400x120", day),
		credential(hourly, 3600)...)},
	"HSMSignerCredentialExpires": {append(credential("600x120", 600),
		credential("86400x120", 60*day)...), append(credential("86400x120", day),
		credential(hourly, 3600)...)},
	"HSMSignerKubeconfigRefused": {[]string{`hsm_signer_kubeconfig_refused 1x120`},
		[]string{`hsm_signer_kubeconfig_refused 0x120`}},
	"HSMSignerPodsExpiring": {[]string{`hsm_signer_expiring_pods 3x120`},
		[]string{`hsm_signer_expiring_pods 0x120`, `hsm_signer_expiring_pods 0x50 3x10 0x60`}},
	"HSMSignerPodsExpired": {[]string{`hsm_signer_expired_pods 1x120`},
		[]string{`hsm_signer_expired_pods 0x120`}},
	"HSMSignerExpiryUnknown": {[]string{`hsm_signer_expiry_unknown 1x120`},
		[]string{`hsm_signer_expiry_unknown 0x120`}},
}

// hourly are the ends of a pod's tokens of an hour, which kubelet renews when a fifth is left.
const hourly = "3600x47 6480x47 9360x30"

// credential returns the series of a credential with these ends and this lifetime in seconds, next
// to those of a replica whose credential lives for a year.
func credential(ends string, lifetime int) []string {
	const name = "hsm_signer_credential_"
	return []string{fmt.Sprintf(`%[1]snot_after_timestamp_seconds{kind="token",instance="a"} %[2]s
  %[1]slifetime_seconds{kind="token",instance="a"} %[3]dx120
  %[1]snot_after_timestamp_seconds{kind="token",instance="b"} %[4]dx120
  %[1]slifetime_seconds{kind="token",instance="b"} %[4]dx120`, name, ends, lifetime, 365*day)}
}

func notAfter(seconds int) []string {
	return []string{fmt.Sprintf("hsm_signer_ca_not_after_timestamp_seconds %dx120", seconds)}
}

func TestEachAlertFiresWhenItShouldAlone(t *testing.T) {
	var names []string
	for _, r := range readRules(t) {
		names = append(names, r.Alert)
		c := cases[r.Alert]
		if len(c.fires) == 0 || len(c.quiet) == 0 {
			t.Errorf("%s: there is no case in which it fires, or none in which it does not",
				r.Alert)
		}
		for _, series := range c.fires {
			if !fires(t, r, series) {
				t.Errorf("%s does not fire with %s", r.Alert, series)
			}
		}
		for _, series := range c.quiet {
			if fires(t, r, series) {
				t.Errorf("%s fires with %s", r.Alert, series)
			}
		}
	}
	for name := range cases {
		if !slices.Contains(names, name) {
			t.Errorf("there is no alert %s", name)
		}
	}
}

// fires evaluates the alert with Prometheus each minute for two hours, or for a day and two hours
// if the alert looks back a day, and reports whether it ever fires.
func fires(t *testing.T, r monitoringv1.Rule, series string) bool {
	t.Helper()
	storage := promqltest.LoadedStorage(t, "load 1m\n  "+series+"\n")
	engine := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
	alert := alertingRule(t, r)
	minutes := 121
	if strings.Contains(r.Expr.String(), "offset 1d") {
		minutes += 24 * 60
	}
	fired := false
	for minute := range minutes {
		if _, err := alert.Eval(t.Context(), 0, time.Unix(int64(minute)*60, 0),
			rules.EngineQueryFunc(engine, storage), nil, 0); err != nil {
			t.Fatalf("%s: %v", r.Alert, err)
		}
		for _, active := range alert.ActiveAlerts() {
			if active.State == rules.StateFiring {
				fired = true
				requireText(t, r.Alert, active.Annotations)
			}
		}
	}
	return fired
}

// alertingRule returns the alert as Prometheus evaluates it.
func alertingRule(t *testing.T, r monitoringv1.Rule) *rules.AlertingRule {
	t.Helper()
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(r.Expr.String())
	if err != nil {
		t.Fatalf("%s: %v", r.Alert, err)
	}
	hold, err := model.ParseDuration(string(*r.For))
	if err != nil {
		t.Fatalf("%s: %v", r.Alert, err)
	}
	return rules.NewAlertingRule(r.Alert, expr, time.Duration(hold), 0, labels.FromMap(r.Labels),
		labels.FromMap(r.Annotations), labels.EmptyLabels(), "", true, promslog.NewNopLogger())
}

// requireText requires annotations with filled templates.
func requireText(t *testing.T, alert string, annotations labels.Labels) {
	t.Helper()
	if summary := annotations.Get("summary"); summary == "" || strings.Contains(summary, "error") ||
		strings.Contains(summary, "{{") {
		t.Errorf("%s: the summary is %q", alert, summary)
	}
}

func TestEachAlertHasItsSectionInTheRunbook(t *testing.T) {
	text, err := os.ReadFile(runbookFile)
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, section := range strings.Split(string(text), "\n## ")[1:] {
		title, body, _ := strings.Cut(section, "\n")
		sections[title] = body
	}
	for _, r := range readRules(t) {
		body, found := sections[r.Alert]
		if !found {
			t.Errorf("the runbook has no section %s", r.Alert)
		}
		for _, part := range []string{"**Means.**", "**Look.**", "**Do.**", "**Escalate.**"} {
			if found && !strings.Contains(body, part) {
				t.Errorf("%s: the runbook does not say %s", r.Alert, part)
			}
		}
		want := "https://git.example.com/hsm-signer/docs/runbook.md#" + strings.ToLower(r.Alert)
		if url := r.Annotations["runbook_url"]; url != want {
			t.Errorf("%s: runbook_url is %q; want %q", r.Alert, url, want)
		}
		if s := r.Labels["severity"]; s != "warning" && s != "critical" {
			t.Errorf("%s: severity %q", r.Alert, s)
		}
		delete(sections, r.Alert)
	}
	for title := range sections {
		if strings.HasPrefix(title, "HSMSigner") {
			t.Errorf("the runbook has a section %s, and there is no such alert", title)
		}
	}
}

// An alert on an installation keeps the label of its CA, unless it is about what the CAs of a
// process share.
func TestAlertsKeepTheCA(t *testing.T) {
	shared := []string{"HSMSignerDown", "HSMSignerReplicaGone", "HSMSignerManyRequests",
		"HSMSignerCredentialExpiring", "HSMSignerCredentialExpires", "HSMSignerKubeconfigRefused"}
	for _, r := range readRules(t) {
		expr, err := parser.NewParser(parser.Options{}).ParseExpr(r.Expr.String())
		if err != nil {
			t.Fatal(err)
		}
		parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
			by, is := node.(*parser.AggregateExpr)
			if is && slices.Contains(by.Grouping, "ca") == by.Without &&
				!slices.Contains(shared, r.Alert) {
				t.Errorf("%s drops the label ca: %s", r.Alert, node)
			}
			return nil
		})
		if text := r.Annotations["summary"]; strings.Contains(text, "$labels.ca") ==
			slices.Contains(shared, r.Alert) {
			t.Errorf("%s names the CA, or not: %s", r.Alert, text)
		}
	}
}
