package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"hsm-signer/kube"
)

// metrics counts what happens, for Prometheus, package by package. Every label has few values: rules
// and reasons come from the policy and from this program, never from a requester.
type metrics struct {
	registry *prometheus.Registry
	policyMetrics
	issuerMetrics
	tokenMetrics
	kubeMetrics
}

func newMetrics() *metrics {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	register := promauto.With(registry)
	return &metrics{registry, newPolicyMetrics(register), newIssuerMetrics(register), newTokenMetrics(register), newKubeMetrics(register)}
}

// Report is [kube.Sink]'s.
func (m *metrics) Report(r kube.Report) {
	m.kubeMetrics.report(r)
	if o, is := r.(kube.Outcome); is {
		m.policyMetrics.count(o)
		m.issuerMetrics.count(o)
	}
}

// watchSigning has shown at each scrape how token, CA and journal stand.
func (m *metrics) watchSigning(p *parts, extractable bool) {
	m.gauge("hsm_signer_extractable_key_allowed", "1 when ALLOW_EXTRACTABLE_KEY is set: the CA's key may be one that can leave its token; else 0.", func() float64 { return number(extractable) })
	m.watchToken(p.key.Stats)
	m.watchCA(p.issuer.CA)
	m.registry.MustRegister(journalMetrics{p.journal, p.witness})
}

// gauge has a value shown at each scrape.
func (m *metrics) gauge(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
