package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/cmd/hsm-signer/internal/rotation"
	"hsm-signer/cmd/hsm-signer/internal/rotator"
)

// RotationCollector makes metrics of how a rotation of the CA stands.
type RotationCollector struct {
	Rotator interface {
		State() (s rotation.State, known bool)
		Count() rotator.Count
	}
}

var (
	descPhase = prometheus.NewDesc("hsm_signer_rotation_phase",
		"1 for the phase of the CA's rotation that the lease has, else 0. Missing until the "+
			"lease was read.", []string{"phase"}, nil)
	descLive = prometheus.NewDesc("hsm_signer_live_certificates",
		"Certificates of each CA that are valid and whose pod lives, as far as this replica's "+
			"journal knows. Missing without NEXT_CA_CERT_FILE, and until they were counted.",
		[]string{"file"}, nil)
)

// Describe is [prometheus.Collector]'s.
func (r RotationCollector) Describe(to chan<- *prometheus.Desc) {
	to <- descPhase
	to <- descLive
}

// Collect is [prometheus.Collector]'s.
func (r RotationCollector) Collect(to chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, label string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, label)
	}
	if state, known := r.Rotator.State(); known {
		for _, phase := range rotation.Phases {
			gauge(descPhase, Number(state.Current() == phase), string(phase))
		}
	}
	if count := r.Rotator.Count(); !count.At.IsZero() {
		gauge(descLive, float64(count.CA), "CA_CERT_FILE")
		gauge(descLive, float64(count.Next), "NEXT_CA_CERT_FILE")
	}
}
