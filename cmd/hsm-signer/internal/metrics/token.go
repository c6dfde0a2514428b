package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"hsm-signer/hsm"
)

// tokenMetrics count what the token does.
type tokenMetrics struct{ signatures prometheus.Histogram }

func newTokenMetrics(register promauto.Factory) tokenMetrics {
	return tokenMetrics{register.NewHistogram(prometheus.HistogramOpts{
		Name: "hsm_signer_signature_duration_seconds",
		Help: "Time for a certificate's signature by the token, with the wait for a session " +
			"and the recovery from faults, also if it failed.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
	})}
}

// Signed records how long the token took.
func (m tokenMetrics) Signed(took time.Duration) { m.signatures.Observe(took.Seconds()) }

// watchToken shows the counters and the sessions of the key at each scrape.
func (m *Metrics) watchToken(stats func() hsm.Stats) {
	count := func(name, help string, value func(hsm.Stats) int64) {
		m.Registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name,
			Help: help}, func() float64 { return float64(value(stats())) }))
	}
	count("hsm_signer_token_signatures_total", "Verified signatures by the token, including "+
		"test signatures.", func(s hsm.Stats) int64 { return s.Signatures })
	count("hsm_signer_token_logins_total", "Calls of C_Login.",
		func(s hsm.Stats) int64 { return s.Logins })
	count("hsm_signer_token_connections_total", "Connections to the token: the first one, and "+
		"one after each fault that required another.",
		func(s hsm.Stats) int64 { return s.Connections })
	count("hsm_signer_token_initialisations_total", "Calls of C_Initialize.",
		func(s hsm.Stats) int64 { return s.Initialised })
	count("hsm_signer_token_calls_abandoned_total", "Calls into the PKCS#11 module that did not "+
		"return within PKCS11_TIMEOUT.", func(s hsm.Stats) int64 { return s.Abandoned })
	m.gauge("hsm_signer_token_calls_hanging", "Abandoned calls that have not returned yet; each "+
		"holds a thread.", func() float64 { return float64(stats().Hanging) })
	m.gauge("hsm_signer_token_sessions_open", "Open PKCS#11 sessions, including the login "+
		"session; 0 while the token is not connected.",
		func() float64 { return float64(stats().Sessions.Open) })
	m.gauge("hsm_signer_token_sessions_in_use", "PKCS#11 sessions that are signing.",
		func() float64 { return float64(stats().Sessions.InUse) })
	m.gauge("hsm_signer_token_sessions_max", "PKCS#11 sessions that may sign at once: "+
		"PKCS11_MAX_SESSIONS, or 16, and more while calls are slow, if the token allows it; "+
		"0 while it is not connected.",
		func() float64 { return float64(stats().Sessions.Most) })
}
