package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/cmd/hsm-signer/internal/credential"
)

// A CredentialCollector shows at each scrape when the credential for the API server expires.
type CredentialCollector struct{ Source *credential.Source }

var (
	descCredentialEnds = prometheus.NewDesc("hsm_signer_credential_not_after_timestamp_seconds",
		"When the credential for the API server expires, by kind (token, client_certificate). "+
			"Missing if it does not expire, if that is not known, or if an exec plugin renews it.",
		[]string{"kind"}, nil)
	descCredentialLifetime = prometheus.NewDesc("hsm_signer_credential_lifetime_seconds",
		"The whole lifetime of the credential for the API server, by kind.",
		[]string{"kind"}, nil)
	descKubeconfigRefused = prometheus.NewDesc("hsm_signer_kubeconfig_refused",
		"1 while KUBECONFIG in its present form is refused, and the credential before it stays in "+
			"use; else 0.", nil, nil)
)

// Describe is [prometheus.Collector]'s.
func (c CredentialCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descCredentialEnds, descCredentialLifetime,
		descKubeconfigRefused} {
		to <- d
	}
}

// Collect is [prometheus.Collector]'s.
func (c CredentialCollector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for _, e := range c.Source.Expiries() {
		if !e.NotAfter.IsZero() && !e.Plugin {
			gauge(descCredentialEnds, float64(e.NotAfter.Unix()), e.Kind)
			gauge(descCredentialLifetime, e.Lifetime().Seconds(), e.Kind)
		}
	}
	gauge(descKubeconfigRefused, Number(c.Source.Refusal() != nil))
}
