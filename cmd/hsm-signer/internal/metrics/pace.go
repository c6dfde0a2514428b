package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/kube/pace"
)

// PaceCollector makes metrics of the pace of answers.
type PaceCollector struct {
	Controller interface{ Pace() pace.State }
}

var (
	descAnswerRate = prometheus.NewDesc("hsm_signer_answer_rate",
		"The limit of answers a second, and the reason; +Inf: no limit. See ANSWER_RATE.",
		[]string{"reason"}, nil)
	descAnswersHeld = prometheus.NewDesc("hsm_signer_answers_held",
		"Requests whose answers are delayed so that clients keep their watches.", nil, nil)
	descClients = prometheus.NewDesc("hsm_signer_clients_watching",
		"Clients that are known to watch for a certificate: pods with an init container that "+
			"has not ended.", nil, nil)
)

// Describe is [prometheus.Collector]'s.
func (p PaceCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descAnswerRate, descAnswersHeld, descClients} {
		to <- d
	}
}

// Collect is [prometheus.Collector]'s.
func (p PaceCollector) Collect(to chan<- prometheus.Metric) {
	s := p.Controller.Pace()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(descAnswerRate, s.Rate, string(s.Reason))
	gauge(descAnswersHeld, float64(s.Waiting))
	gauge(descClients, float64(s.Clients))
}
