package heal

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
)

// metrics counts what "heal" does.
type metrics struct {
	registry *prometheus.Registry
	stuck    *prometheus.GaugeVec // without labels; empty while the number is not known
	deleted  *prometheus.CounterVec
	failures prometheus.Counter
}

// The values of the label evidence.
const (
	strongEvidence = "strong"
	weakEvidence   = "weak"
)

func newMetrics() *metrics {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	register := promauto.With(registry)
	register.NewGauge(prometheus.GaugeOpts{Name: buildinfo.MetricName, Help: buildinfo.MetricHelp,
		ConstLabels: buildinfo.MetricLabels()}).Set(1)
	m := &metrics{
		registry: registry,
		stuck: register.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hsm_signer_heal_stuck_pods",
			Help: "Pods that run without the certificate that was issued to them, as heal sees " +
				"them; missing while that is not known.",
		}, nil),
		deleted: register.NewCounterVec(prometheus.CounterOpts{
			Name: "hsm_signer_heal_deleted_pods_total",
			Help: "Stuck pods that heal deleted, by evidence: strong (an init container ended " +
				"before its certificate was there) or weak.",
		}, []string{"evidence"}),
		failures: register.NewCounter(prometheus.CounterOpts{
			Name: "hsm_signer_heal_failures_total",
			Help: "Stuck pods that heal could not delete because of an error; it tries again.",
		}),
	}
	for _, evidence := range []string{strongEvidence, weakEvidence} {
		m.deleted.WithLabelValues(evidence)
	}
	return m
}

// Found notes how many pods are stuck; a negative number says that it is not known.
func (m *metrics) Found(pods int) {
	if pods < 0 {
		m.stuck.Reset()
		return
	}
	m.stuck.WithLabelValues().Set(float64(pods))
}

// Deleted counts a deleted pod.
func (m *metrics) Deleted(sure bool) {
	evidence := weakEvidence
	if sure {
		evidence = strongEvidence
	}
	m.deleted.WithLabelValues(evidence).Inc()
}

// Failed counts a deletion that failed.
func (m *metrics) Failed() { m.failures.Inc() }
