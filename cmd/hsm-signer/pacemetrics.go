package main

import (
	"fmt"
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/kube/pace"
)

// paceCollector makes metrics of the pace of answers.
type paceCollector struct{ state func() pace.State }

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
func (p paceCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descAnswerRate, descAnswersHeld, descClients} {
		to <- d
	}
}

// Collect is [prometheus.Collector]'s.
func (p paceCollector) Collect(to chan<- prometheus.Metric) {
	s := p.state()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(descAnswerRate, s.Rate, string(s.Reason))
	gauge(descAnswersHeld, float64(s.Waiting))
	gauge(descClients, float64(s.Clients))
}

// paceInWords describes the pace of answers for the status page.
func paceInWords(s pace.State) string {
	rate := "at once"
	switch {
	case s.Rate == 0:
		rate = "none for the moment"
	case !math.IsInf(s.Rate, 1):
		rate = fmt.Sprintf("%.0f a second", math.Ceil(s.Rate))
	}
	if s.Waiting > 0 {
		rate += fmt.Sprintf(", %d held back", s.Waiting)
	}
	return fmt.Sprintf("%s (%s)", rate, s.Reason)
}
