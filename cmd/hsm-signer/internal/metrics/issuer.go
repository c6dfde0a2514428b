package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"hsm-signer/issuer"
	"hsm-signer/kube"
)

// issuerMetrics are of the certificates that are issued, and of the CA that issues them.
type issuerMetrics struct {
	issued    *prometheus.CounterVec
	requests  prometheus.Histogram
	CARefused prometheus.Gauge
	// TrustBundleRefused is 1 while TRUST_BUNDLE_FILE is refused.
	TrustBundleRefused prometheus.Gauge
}

func newIssuerMetrics(register promauto.Factory) issuerMetrics {
	return issuerMetrics{
		issued: register.NewCounterVec(prometheus.CounterOpts{
			Name: "hsm_signer_certificates_issued_total",
			Help: "Certificates that were signed and published, by the rule that granted them.",
		}, []string{"rule"}),
		requests: register.NewHistogram(prometheus.HistogramOpts{
			Name: "hsm_signer_request_duration_seconds",
			Help: "From the creation of a request, which the API server notes in whole " +
				"seconds, to its certificate there.",
			// a pod's init container gives up after 90
			Buckets: []float64{1, 2, 5, 10, 20, 45, 90, 300, 3600},
		}),
		CARefused: register.NewGauge(prometheus.GaugeOpts{
			Name: "hsm_signer_ca_file_refused",
			Help: "1 while the file of the CA's certificate as it is now is refused and the " +
				"certificate before it stays in use, else 0.",
		}),
		TrustBundleRefused: register.NewGauge(prometheus.GaugeOpts{
			Name: "hsm_signer_trust_bundle_file_refused",
			Help: "1 while TRUST_BUNDLE_FILE as it is now is refused and the certificates " +
				"before it stay published, else 0.",
		}),
	}
}

// count counts a certificate that was published.
func (m issuerMetrics) count(o kube.Outcome) {
	if o.Result == kube.ResultIssued {
		m.issued.WithLabelValues(o.Rule).Inc()
		m.requests.Observe(o.Age.Seconds())
	}
}

// watchCA has shown at each scrape when the CA's certificate expires.
func (m *Metrics) watchCA(ca func() *issuer.CA) {
	m.gauge("hsm_signer_ca_not_after_timestamp_seconds", "When the CA's certificate expires, in "+
		"seconds since 1970.",
		func() float64 { return float64(ca().Certificate().NotAfter.Unix()) })
}
