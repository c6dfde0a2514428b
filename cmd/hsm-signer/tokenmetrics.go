package main

import (
	"context"
	"crypto"
	"io"
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

// signed records how long the token took.
func (m tokenMetrics) signed(took time.Duration) { m.signatures.Observe(took.Seconds()) }

// watchToken shows the counters and the sessions of the key at each scrape.
func (m *metrics) watchToken(stats func() hsm.Stats) {
	count := func(name, help string, value func(hsm.Stats) int64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name,
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
		"PKCS11_MAX_SESSIONS, or what the token allows; 0 while it is not connected.",
		func() float64 { return float64(stats().Sessions.Most) })
}

// A stoppedKey signs no certificate while the journal is known to be rolled back.
type stoppedKey struct {
	timedKey
	rolledBack func() error
}

// Signer returns a signer that returns an error while the journal is rolled back.
func (k stoppedKey) Signer(ctx context.Context) crypto.Signer {
	return stoppedSigner{k.timedKey.Signer(ctx), k.rolledBack}
}

type stoppedSigner struct {
	crypto.Signer
	rolledBack func() error
}

func (s stoppedSigner) Sign(random io.Reader, digest []byte,
	opts crypto.SignerOpts) ([]byte, error) {
	if err := s.rolledBack(); err != nil {
		return nil, err
	}
	return s.Signer.Sign(random, digest, opts)
}

// A timedKey reports how long each signature of a certificate took.
type timedKey struct {
	*hsm.Key
	signed func(time.Duration)
}

// Signer returns a signer whose signatures end with the context, and are timed.
func (k timedKey) Signer(ctx context.Context) crypto.Signer {
	return timedSigner{k.Key.Signer(ctx), k.signed}
}

type timedSigner struct {
	crypto.Signer
	signed func(time.Duration)
}

func (s timedSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	began := time.Now()
	defer func() { s.signed(time.Since(began)) }()
	return s.Signer.Sign(random, digest, opts)
}
