package metrics

import "github.com/prometheus/client_golang/prometheus"

// TrustBundleCollector makes a metric of whether the trust anchors are published.
type TrustBundleCollector struct {
	// Bundle reports the latest result; known is false while another replica publishes.
	Bundle interface {
		Published() (published, known bool)
	}
}

var descPublished = prometheus.NewDesc("hsm_signer_trust_bundle_published",
	"1 while each signer's ClusterTrustBundle, or each namespace's ConfigMap, holds the "+
		"certificates of TRUST_BUNDLE_FILE, else 0. Missing while another replica leads, and "+
		"without TRUST_BUNDLE_FILE.", nil, nil)

// Describe is [prometheus.Collector]'s.
func (t TrustBundleCollector) Describe(to chan<- *prometheus.Desc) { to <- descPublished }

// Collect is [prometheus.Collector]'s.
func (t TrustBundleCollector) Collect(to chan<- prometheus.Metric) {
	if published, known := t.Bundle.Published(); known {
		to <- prometheus.MustNewConstMetric(descPublished, prometheus.GaugeValue, Number(published))
	}
}
