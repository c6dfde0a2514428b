package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/cmd/hsm-signer/internal/health"
)

// A HealthCollector shows at each scrape which part is ready, and since when one is not.
type HealthCollector struct {
	Health interface {
		Parts() []health.Part
		Remarks() []health.Part
	}
}

var (
	descReady = prometheus.NewDesc("hsm_signer_ready",
		"1 while this part of /readyz is ok: requests (they are watched), permissions, credential "+
			"(not expired), token, ca (within its dates), journal, clock (of the API server, with "+
			"POD_CERTIFICATES: near enough), rotation (of the CA, while there is one: its phase is "+
			"clear); else 0.", []string{"part"}, nil)
	descSince = prometheus.NewDesc("hsm_signer_unhealthy_since_timestamp_seconds",
		"Since when this part is not well; 0: it is well. The parts of hsm_signer_ready, and "+
			"lease (nobody is known to lead), other_ca (the key of a rotation that does not sign "+
			"now), trust_bundle (it is not published), and the files policy_file, ca_file, "+
			"next_ca_file, trust_bundle_file and kubeconfig (the changed file is refused).",
		[]string{"part"}, nil)
)

// Describe is [prometheus.Collector]'s.
func (h HealthCollector) Describe(all chan<- *prometheus.Desc) {
	all <- descReady
	all <- descSince
}

// Collect is [prometheus.Collector]'s.
func (h HealthCollector) Collect(all chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, part string) {
		all <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, part)
	}
	parts := h.Health.Parts()
	for _, p := range parts {
		gauge(descReady, Number(p.Err == nil), p.Name)
	}
	for _, p := range append(parts, h.Health.Remarks()...) {
		since := 0.0
		if !p.Since.IsZero() {
			since = float64(p.Since.Unix())
		}
		gauge(descSince, since, p.Name)
	}
}
