package main

import (
	"context"
	"crypto"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"hsm-signer/hsm"
)

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

// countCalls counts the calls that go through a transport to the API server.
func (m *metrics) countCalls(transport http.RoundTripper) http.RoundTripper {
	return countedCalls{transport, m}
}

type countedCalls struct {
	http.RoundTripper
	metrics *metrics
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
	c.metrics.apiCalls.WithLabelValues(verb, code).Inc()
	return response, err
}
