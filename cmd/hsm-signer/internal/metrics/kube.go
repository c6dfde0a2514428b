package metrics

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"hsm-signer/kube"
)

// kubeMetrics describe the cluster: calls of its API server, the leader, the requests.
type kubeMetrics struct {
	faults    prometheus.Counter
	leaders   prometheus.Counter
	apiCalls  *prometheus.CounterVec
	inCluster *prometheus.GaugeVec
	requests  *prometheus.GaugeVec // without labels; empty while the number is not known
	deleted   prometheus.Counter
}

func newKubeMetrics(register promauto.Factory) kubeMetrics {
	return kubeMetrics{
		faults: register.NewCounter(prometheus.CounterOpts{
			Name: "hsm_signer_faults_total",
			Help: "Syncs of a request that ended with a fault (token, API server); they are " +
				"retried.",
		}),
		leaders: register.NewCounter(prometheus.CounterOpts{
			Name: "hsm_signer_leader_changes_total",
			Help: "How often this process saw another controller come to lead, or itself; 0 " +
				"without an election.",
		}),
		apiCalls: register.NewCounterVec(prometheus.CounterOpts{
			Name: "hsm_signer_api_calls_total",
			Help: "Calls to the API server by verb (a watch is one call) and HTTP code; the " +
				"code is error where no answer came.",
		}, []string{"verb", "code"}),
		inCluster: register.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hsm_signer_certificates_in_cluster",
			Help: "Certificates on requests of our signers, by origin: own; another_journal " +
				"(the CA signed it for a former journal or another replica); unrecorded (the CA " +
				"signed it, this journal should have it, and has not); foreign (the CA did not " +
				"sign it). Only who leads knows.",
		}, []string{"origin"}),
		requests: register.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hsm_signer_requests_in_cluster",
			Help: "Certificate requests in the cluster, of all signers: each of Calico's init " +
				"containers reads all of them first. Only who leads knows.",
		}, nil),
		deleted: register.NewCounter(prometheus.CounterOpts{
			Name: "hsm_signer_finished_requests_deleted_total",
			Help: "Finished requests that were deleted, as DELETE_FINISHED_AFTER says.",
		}),
	}
}

// report counts and shows what is reported of the cluster.
func (m kubeMetrics) report(r kube.Report) {
	switch r := r.(type) {
	case kube.Outcome:
		if r.Result == kube.ResultFault {
			m.faults.Inc()
		}
	case kube.LeaderChange:
		m.leaders.Inc()
	case kube.Census:
		m.census(r)
	case kube.RequestCount:
		m.requests.Reset() // a 0 would say that all is well
		if r.Known {
			m.requests.WithLabelValues().Set(float64(r.Requests))
		}
	case kube.Deletion:
		m.deleted.Inc()
	}
}

// census shows how many certificates there are of each issuance.
func (m kubeMetrics) census(r kube.Census) {
	if r.Certificates == nil { // a 0 would say that all is well
		m.inCluster.Reset()
		return
	}
	for _, issuance := range []kube.Issuance{kube.Own, kube.OtherJournal, kube.Unrecorded,
		kube.Foreign} {
		m.inCluster.WithLabelValues(string(issuance)).Set(float64(r.Certificates[issuance]))
	}
}

// WatchController has shown at each scrape how the controller stands.
func (m *Metrics) WatchController(c *kube.Controller) {
	m.gauge("hsm_signer_leading", "1 while this process leads, or is the only one; else 0.",
		func() float64 { return Number(c.Leads()) })
	m.gauge("hsm_signer_queue_length", "Requests that wait for a worker; one that waits for its "+
		"next try is not among them.", func() float64 { return float64(c.Queued()) })
	m.Registry.MustRegister(PaceCollector{c}, OpenCollector{c})
}

// CountCalls counts the calls that go through a transport to the API server.
func (m kubeMetrics) CountCalls(transport http.RoundTripper) http.RoundTripper {
	return countedCalls{transport, m.apiCalls}
}

type countedCalls struct {
	http.RoundTripper
	calls *prometheus.CounterVec
}

func (c countedCalls) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := c.RoundTripper.RoundTrip(r)
	verb, code := strings.ToLower(r.Method), "error"
	if r.URL.Query().Get("watch") == "true" {
		verb = "watch"
	}
	if err == nil {
		code = strconv.Itoa(response.StatusCode)
	}
	c.calls.WithLabelValues(verb, code).Inc()
	return response, err
}
