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

// tokenMetrics are of what the token does.
type tokenMetrics struct{ signatures prometheus.Histogram }

func newTokenMetrics(register promauto.Factory) tokenMetrics {
	return tokenMetrics{register.NewHistogram(prometheus.HistogramOpts{
		Name:    "hsm_signer_signature_duration_seconds",
		Help:    "A signature of a certificate by the token, with the waiting for a session and what it took to get over faults; also those that failed.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
	})}
}

// signed takes note of how long the token took.
func (m tokenMetrics) signed(took time.Duration) { m.signatures.Observe(took.Seconds()) }

// watchToken has what the key did, and its sessions, shown at each scrape.
func (m *metrics) watchToken(stats func() hsm.Stats) {
	count := func(name, help string, value func(hsm.Stats) int64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value(stats())) }))
	}
	count("hsm_signer_token_signatures_total", "Signatures by the token that were verified, test signatures among them.", func(s hsm.Stats) int64 { return s.Signatures })
	count("hsm_signer_token_logins_total", "Calls of C_Login.", func(s hsm.Stats) int64 { return s.Logins })
	count("hsm_signer_token_connections_total", "Connections to the token: the first one, and one after each fault that needed another.", func(s hsm.Stats) int64 { return s.Connections })
	count("hsm_signer_token_initialisations_total", "Calls of C_Initialize.", func(s hsm.Stats) int64 { return s.Initialised })
	count("hsm_signer_token_calls_abandoned_total", "Calls into the PKCS#11 module that did not come back within PKCS11_TIMEOUT.", func(s hsm.Stats) int64 { return s.Abandoned })
	m.gauge("hsm_signer_token_calls_hanging", "Calls that were abandoned and have not come back yet; each holds a thread.", func() float64 { return float64(stats().Hanging) })
	m.gauge("hsm_signer_token_sessions_open", "PKCS#11 sessions that are open, with the one that keeps the login; 0 while the token is not connected.", func() float64 { return float64(stats().Sessions.Open) })
	m.gauge("hsm_signer_token_sessions_in_use", "PKCS#11 sessions that sign now.", func() float64 { return float64(stats().Sessions.InUse) })
	m.gauge("hsm_signer_token_sessions_max", "PKCS#11 sessions that may sign at once: PKCS11_MAX_SESSIONS, or what the token allows; 0 while it is not connected.", func() float64 { return float64(stats().Sessions.Most) })
}

// A stoppedKey is a key that signs no certificate while the journal is known to be rolled back.
type stoppedKey struct {
	timedKey
	rolledBack func() error
}

// Signer returns a signer that is not used while the journal is stopped.
func (k stoppedKey) Signer(ctx context.Context) crypto.Signer {
	return stoppedSigner{k.timedKey.Signer(ctx), k.rolledBack}
}

type stoppedSigner struct {
	crypto.Signer
	rolledBack func() error
}

func (s stoppedSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := s.rolledBack(); err != nil {
		return nil, err
	}
	return s.Signer.Sign(random, digest, opts)
}

// A timedKey is a key that tells how long each signature of a certificate took.
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
