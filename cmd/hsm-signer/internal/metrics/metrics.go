// Package metrics makes Prometheus metrics of what the daemon does. Every label has few values:
// rules and reasons come from the policy and from this program, never from a requester.
package metrics

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/witness"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
)

// Metrics counts what happens for one CA, package by package.
type Metrics struct {
	*Process
	Registry prometheus.Registerer
	policyMetrics
	issuerMetrics
	tokenMetrics
	kubeMetrics
}

// A Process has the metrics of a process. It is not safe for concurrent use, unlike the metrics.
type Process struct {
	registry *prometheus.Registry
	cas      map[string]*Metrics
}

// NewProcess returns the metrics of Go, of the process and of its build. [Process.Of] adds those of
// a CA.
func NewProcess() *Process {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	promauto.With(registry).NewGauge(prometheus.GaugeOpts{Name: buildinfo.MetricName,
		Help: buildinfo.MetricHelp, ConstLabels: buildinfo.MetricLabels()}).Set(1)
	return &Process{registry, map[string]*Metrics{}}
}

// caLabel names the CA of a metric, in a process with CONFIG_FILE.
const caLabel = "ca"

// Of returns the metrics of a CA. If it has a name, each of them has the label "ca".
func (p *Process) Of(ca string) *Metrics {
	if p.cas[ca] == nil {
		registerer := prometheus.Registerer(p.registry)
		if ca != "" {
			registerer = prometheus.WrapRegistererWith(prometheus.Labels{caLabel: ca}, registerer)
		}
		register := promauto.With(registerer)
		p.cas[ca] = &Metrics{p, registerer, newPolicyMetrics(register),
			newIssuerMetrics(register), newTokenMetrics(register), newKubeMetrics(register)}
	}
	return p.cas[ca]
}

// New returns the metrics of a process with one CA.
func New() *Metrics { return NewProcess().Of("") }

// Report is [kube.Sink]'s.
func (m *Metrics) Report(r kube.Report) {
	m.kubeMetrics.report(r)
	if o, is := r.(kube.Outcome); is {
		m.policyMetrics.count(o)
		m.issuerMetrics.count(o)
	}
}

// WatchSigning has shown at each scrape how token, CA and journal stand.
func (m *Metrics) WatchSigning(keys interface{ Stats() hsm.Stats }, ca func() *issuer.CA,
	j *journal.Journal, w *witness.Witness, extractable bool) {
	m.gauge("hsm_signer_extractable_key_allowed", "1 when ALLOW_EXTRACTABLE_KEY is set: the "+
		"CA's key may be one that can leave its token; else 0.",
		func() float64 { return Number(extractable) })
	m.watchToken(keys.Stats)
	m.watchCA(ca)
	m.Registry.MustRegister(journalMetrics{j, w})
}

// gauge has a value shown at each scrape.
func (m *Metrics) gauge(name, help string, value func() float64) {
	m.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
		value))
}

func Number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Handler serves the metrics of the whole process.
func (p *Process) Handler() http.Handler {
	return promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{})
}
