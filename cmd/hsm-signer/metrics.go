package main

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/kube"
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
	caRefused  prometheus.Gauge
	inForce    *prometheus.GaugeVec
	requests   prometheus.Histogram
	signatures prometheus.Histogram
	leaders    prometheus.Counter
	apiCalls   *prometheus.CounterVec
	inCluster  *prometheus.GaugeVec
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
		caRefused: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "hsm_signer_ca_file_refused",
			Help: "1 while the file of the CA's certificate as it is now is refused and the certificate before it stays in use, else 0.",
		}),
		inForce: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hsm_signer_policy_info",
			Help: "1 for the policy in force, by its hash.",
		}, []string{"hash"}),
		requests: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "hsm_signer_request_duration_seconds",
			Help:    "From the creation of a request, which the API server notes in whole seconds, to its certificate there.",
			Buckets: []float64{1, 2, 5, 10, 20, 45, 90, 300, 3600}, // a pod's init container gives up after 90
		}),
		signatures: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "hsm_signer_signature_duration_seconds",
			Help:    "A signature of a certificate by the token, with the waiting for a session and what it took to get over faults; also those that failed.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		leaders: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hsm_signer_leader_changes_total",
			Help: "How often this process saw another controller come to lead, or itself; 0 without an election.",
		}),
		apiCalls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hsm_signer_api_calls_total",
			Help: "Calls to the API server by verb (a watch is one call) and HTTP code; the code is error where no answer came.",
		}, []string{"verb", "code"}),
		inCluster: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hsm_signer_certificates_in_cluster",
			Help: "Certificates on requests of our signers, by origin: own; another_journal (the CA signed it for a former journal or another replica); unrecorded (the CA signed it, this journal should have it, and has not); foreign (the CA did not sign it). Only who leads knows.",
		}, []string{"origin"}),
	}
	m.registry.MustRegister(m.decisions, m.issued, m.overBudget, m.faults, m.reloadFail, m.caRefused, m.inForce,
		m.requests, m.signatures, m.leaders, m.apiCalls, m.inCluster, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// watchSigning has shown at each scrape how token, CA and journal stand.
func (m *metrics) watchSigning(p *parts, extractable bool) {
	m.gauge("hsm_signer_extractable_key_allowed", "1 when ALLOW_EXTRACTABLE_KEY is set: the CA's key may be one that can leave its token; else 0.", func() float64 { return number(extractable) })
	m.watchToken(p.key.Stats)
	m.watchCA(p.issuer.CA)
	m.registry.MustRegister(journalMetrics{p.journal})
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
	m.gauge("hsm_signer_token_calls_hanging", "Calls that were abandoned and have not come back yet; each holds a thread.", func() float64 { return float64(stats().Hanging) })
	m.gauge("hsm_signer_token_sessions_open", "PKCS#11 sessions that are open, with the one that keeps the login; 0 while the token is not connected.", func() float64 { return float64(stats().Sessions.Open) })
	m.gauge("hsm_signer_token_sessions_in_use", "PKCS#11 sessions that sign now.", func() float64 { return float64(stats().Sessions.InUse) })
	m.gauge("hsm_signer_token_sessions_max", "PKCS#11 sessions that may sign at once: PKCS11_MAX_SESSIONS, or what the token allows; 0 while it is not connected.", func() float64 { return float64(stats().Sessions.Most) })
}

// gauge has a value shown at each scrape.
func (m *metrics) gauge(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

// watchController has shown at each scrape how the controller stands.
func (m *metrics) watchController(c *kube.Controller) {
	m.gauge("hsm_signer_leading", "1 while this process is the one of many that acts, or the only one; else 0.", func() float64 { return number(c.Leads()) })
	m.gauge("hsm_signer_queue_length", "Requests that wait for a worker; one that waits for its next try is not among them.", func() float64 { return float64(c.Queued()) })
}

// watchCA has shown at each scrape when the CA's certificate expires.
func (m *metrics) watchCA(ca func() *issuer.CA) {
	m.gauge("hsm_signer_ca_not_after_timestamp_seconds", "When the CA's certificate expires, in seconds since 1970.", func() float64 { return float64(ca().Certificate().NotAfter.Unix()) })
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
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

// Issued counts a certificate that was published so long after the request was made.
func (m *metrics) Issued(grant *policy.Grant, after time.Duration) {
	m.issued.WithLabelValues(grant.Rule()).Inc()
	m.requests.Observe(after.Seconds())
}

// NewLeader counts a change of the one that leads.
func (m *metrics) NewLeader() { m.leaders.Inc() }

// Certificates notes how many certificates there are of each origin.
func (m *metrics) Certificates(origins map[kube.Origin]int) {
	if origins == nil { // a 0 here would say that all is well
		m.inCluster.Reset()
		return
	}
	for _, origin := range []kube.Origin{kube.Own, kube.Elsewhere, kube.Unrecorded, kube.Foreign} {
		m.inCluster.WithLabelValues(string(origin)).Set(float64(origins[origin]))
	}
}

// signed takes note of how long the token took.
func (m *metrics) signed(took time.Duration) { m.signatures.Observe(took.Seconds()) }

// OverBudget counts a look at a request that waits for room in a budget.
func (m *metrics) OverBudget() { m.overBudget.Inc() }

// Fault counts a turn that ended with a fault.
func (m *metrics) Fault() { m.faults.Inc() }

// policyInForce notes which policy that is.
func (m *metrics) policyInForce(p *policy.Policy) {
	m.inForce.Reset()
	m.inForce.WithLabelValues(p.Hash()).Set(1)
}

// caFileRefused notes whether the file of the CA's certificate as it is now is refused.
func (m *metrics) caFileRefused(refused bool) { m.caRefused.Set(number(refused)) }

// policyFileRefused notes whether the policy file as it is now is refused.
func (m *metrics) policyFileRefused(refused bool) {
	m.reloadFail.Set(number(refused))
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
