package metrics

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/stuck"
)

// ExpiryCollector makes metrics of the latest report.
type ExpiryCollector struct {
	Watch interface{ Report() expiry.Report }
}

var (
	descValid = prometheus.NewDesc("hsm_signer_certificates_valid",
		"Valid certificates in the journal that expire within so many days (+Inf: all valid ones).",
		[]string{"within_days"}, nil)
	descEndingPods = prometheus.NewDesc("hsm_signer_expiring_pods",
		"Live pods whose newest certificate expires within 30 days, or in the last third of a "+
			"shorter lifetime. Nothing renews it: restart them.", nil, nil)
	descEndedPods = prometheus.NewDesc("hsm_signer_expired_pods",
		"Live pods whose newest certificate expired in the last 30 days, so that their "+
			"connections fail: restart them.", nil, nil)
	descLooked = prometheus.NewDesc("hsm_signer_expiry_scan_timestamp_seconds",
		"When the journal was last read for expiring certificates; 0: never.", nil, nil)
	descBlind = prometheus.NewDesc("hsm_signer_expiry_unknown",
		"1 while it is not known which pods will outlive their certificates, because the "+
			"journal or the pods cannot be read; else 0.", nil, nil)
)

// Describe is [prometheus.Collector]'s.
func (e ExpiryCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descValid, descEndingPods, descEndedPods, descLooked,
		descBlind} {
		to <- d
	}
}

// Collect is [prometheus.Collector]'s.
func (e ExpiryCollector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	r := e.Watch.Report()
	for i, days := range expiry.Days {
		gauge(descValid, float64(r.Within[i]), fmt.Sprint(days))
	}
	gauge(descValid, float64(r.Valid), "+Inf")
	ending, ended := r.Count(time.Now())
	gauge(descEndingPods, float64(ending))
	gauge(descEndedPods, float64(ended))
	looked := 0.0
	if !r.At.IsZero() {
		looked = float64(r.At.Unix())
	}
	gauge(descLooked, looked)
	gauge(descBlind, Number(r.Fault != nil))
}

// StuckCollector makes a metric of the last report.
type StuckCollector struct {
	Watch interface{ Report() stuck.Report }
}

var descStuckPods = prometheus.NewDesc("hsm_signer_stuck_pods",
	"Pods that run without the certificate that was issued to them: delete them, so that they "+
		"ask again. Missing while that is not known.", nil, nil)

// Describe is [prometheus.Collector]'s.
func (s StuckCollector) Describe(to chan<- *prometheus.Desc) { to <- descStuckPods }

// Collect is [prometheus.Collector]'s.
func (s StuckCollector) Collect(to chan<- prometheus.Metric) {
	if r := s.Watch.Report(); r.Known { // a 0 would say that all is well
		to <- prometheus.MustNewConstMetric(descStuckPods, prometheus.GaugeValue,
			float64(len(r.Pods)))
	}
}
