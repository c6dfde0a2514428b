package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/kube"
)

// OpenCollector makes metrics of the open requests. While another controller leads, it shows the
// last answer only.
type OpenCollector struct {
	Controller interface{ Open() kube.Open }
}

var (
	descOpen = prometheus.NewDesc("hsm_signer_open_requests",
		"Requests without an answer, by state: pending, approved (without a certificate), "+
			"unapproved (somebody else must approve it), held (slow clients must keep up), "+
			"waiting (for a fact), over_budget, refusal_held (a running pod is refused, and "+
			"denied later), failing (the last try ended with a fault). Missing while another "+
			"replica leads.", []string{"state"}, nil)
	descOldest = prometheus.NewDesc("hsm_signer_oldest_request_seconds",
		"The age of the oldest request without an answer; 0 if there is none. Calico's clients "+
			"recreate theirs after 90 s.", nil, nil)
	descUnanswered = prometheus.NewDesc("hsm_signer_unanswered_seconds",
		"How long requests have been pending, approved or failing without an answer to any: since "+
			"the last answer, or since the first came. 0 if there is none.", nil, nil)
	descLastAnswer = prometheus.NewDesc("hsm_signer_last_answer_timestamp_seconds",
		"When a request was last seen to be answered, by whichever replica. Missing if none was "+
			"since the start.", nil, nil)
)

// Describe is [prometheus.Collector]'s.
func (o OpenCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descOpen, descOldest, descUnanswered, descLastAnswer} {
		to <- d
	}
}

// Collect is [prometheus.Collector]'s.
func (o OpenCollector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	open := o.Controller.Open()
	if !open.LastAnswer.IsZero() {
		gauge(descLastAnswer, float64(open.LastAnswer.UnixMilli())/1000)
	}
	if !open.Known { // a 0 would say that all is well
		return
	}
	for state, n := range open.States {
		gauge(descOpen, float64(n), string(state))
	}
	oldest := 0.0
	if !open.Oldest.IsZero() {
		oldest = max(0, time.Since(open.Oldest).Seconds())
	}
	gauge(descOldest, oldest)
	gauge(descUnanswered, open.Unanswered.Seconds())
}
