package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"hsm-signer/hsm"
	"hsm-signer/policy"
)

// metrics counts what happens, for Prometheus. Every label has few values: rules and reasons come
// from the policy and from this program, never from a requester.
type metrics struct {
	registry   *prometheus.Registry
	decisions  *prometheus.CounterVec
	issued     *prometheus.CounterVec
	overBudget prometheus.Counter
	faults     prometheus.Counter
	reloadFail prometheus.Gauge
	inForce    *prometheus.GaugeVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hsm_signer_decisions_total",
			Help: "Verdicts of the policy, by verdict (granted, refused, waiting), rule, and reason of a refusal. A request that waits, for a fact or for room in a budget, and one that met a fault is counted at each look.",
		}, []string{"verdict", "rule", "reason"}),
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hsm_signer_certificates_issued_total",
			Help: "Certificates that were signed and published, by the rule that granted them.",
		}, []string{"rule"}),
		overBudget: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hsm_signer_over_budget_total",
			Help: "Looks at a granted request that ended since a budget is spent; the request waits.",
		}),
		faults: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hsm_signer_faults_total",
			Help: "Looks at a request that ended with a fault (token, API server); it is tried again.",
		}),
		reloadFail: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "hsm_signer_policy_file_refused",
			Help: "1 while the policy file as it is now is refused and an earlier policy stays in force, else 0.",
		}),
		inForce: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hsm_signer_policy_info",
			Help: "1 for the policy in force, by its hash.",
		}, []string{"hash"}),
	}
	m.registry.MustRegister(m.decisions, m.issued, m.overBudget, m.faults, m.reloadFail, m.inForce,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// watchToken has what the key did shown at each scrape.
func (m *metrics) watchToken(stats func() hsm.Stats) {
	count := func(name, help string, value func(hsm.Stats) int64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value(stats())) }))
	}
	count("hsm_signer_token_signatures_total", "Signatures by the token that were verified, test signatures among them.", func(s hsm.Stats) int64 { return s.Signatures })
	count("hsm_signer_token_logins_total", "Calls of C_Login.", func(s hsm.Stats) int64 { return s.Logins })
	count("hsm_signer_token_connections_total", "Connections to the token: the first one, and one after each fault that needed another.", func(s hsm.Stats) int64 { return s.Connections })
	count("hsm_signer_token_initialisations_total", "Calls of C_Initialize.", func(s hsm.Stats) int64 { return s.Initialised })
	count("hsm_signer_token_calls_abandoned_total", "Calls into the PKCS#11 module that did not come back within PKCS11_TIMEOUT.", func(s hsm.Stats) int64 { return s.Abandoned })
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hsm_signer_token_calls_hanging",
		Help: "Calls that were abandoned and have not come back yet; each holds a thread.",
	}, func() float64 { return float64(stats().Hanging) }))
}

// watchLead shows at each scrape whether this process is the one that acts.
func (m *metrics) watchLead(leads func() bool) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hsm_signer_leading",
		Help: "1 while this process is the one of many that acts, or the only one; else 0.",
	}, func() float64 { return map[bool]float64{true: 1}[leads()] }))
}

// Decided counts a verdict.
func (m *metrics) Decided(verdict policy.Verdict) {
	switch v := verdict.(type) {
	case *policy.Grant:
		m.decisions.WithLabelValues("granted", v.Rule(), "").Inc()
	case *policy.Refusal:
		m.decisions.WithLabelValues("refused", v.Rule(), string(v.Code())).Inc()
	case *policy.NotYet:
		m.decisions.WithLabelValues("waiting", v.Rule, "").Inc()
	}
}

// Issued counts a certificate that was published.
func (m *metrics) Issued(grant *policy.Grant) { m.issued.WithLabelValues(grant.Rule()).Inc() }

// OverBudget counts a look at a request that waits for room in a budget.
func (m *metrics) OverBudget() { m.overBudget.Inc() }

// Fault counts a turn that ended with a fault.
func (m *metrics) Fault() { m.faults.Inc() }

// policyInForce notes which policy that is.
func (m *metrics) policyInForce(p *policy.Policy) {
	m.inForce.Reset()
	m.inForce.WithLabelValues(p.Hash()).Set(1)
}

// policyFileRefused notes whether the policy file as it is now is refused.
func (m *metrics) policyFileRefused(refused bool) {
	m.reloadFail.Set(map[bool]float64{true: 1}[refused])
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
