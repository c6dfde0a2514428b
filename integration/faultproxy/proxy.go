// Package faultproxy is bad weather between a client and the API server.
//
// Duty: two ways to the API server through which things go wrong when a test says so. A Line carries bytes
// and knows nothing of them: it delays, resets, and is partitioned. A Proxy understands HTTP: it sees each
// call, and answers, loses, or passes it on.
//
// Contract: both listen on 127.0.0.1 only and end with Close. In clear weather, which is how they
// start, every call is passed on unchanged, with the caller's own credentials. What is changed holds
// for the calls, or bytes, that come after it.
package faultproxy

import (
	"context"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"

	"k8s.io/client-go/rest"
)

// A Sky decides what becomes of each call; nil, and a nil Fault, let it pass. It is called from many
// goroutines at once.
type Sky func(r *http.Request) Fault

// A Proxy is a reverse proxy before the API server, with TLS and HTTP/2 as that has them.
type Proxy struct {
	server  *httptest.Server
	forward http.Handler
	sky     atomic.Pointer[Sky]
	calls   atomic.Int64

	mu      sync.Mutex
	watches map[int64]context.CancelFunc // by the number of the call
}

// NewProxy starts a Proxy before the API server that the config names; its credentials are not used.
func NewProxy(upstream *rest.Config) (*Proxy, error) {
	target, err := url.Parse(upstream.Host)
	if err != nil {
		return nil, fmt.Errorf("address of the API server: %w", err)
	}
	transport, err := rest.TransportFor(rest.AnonymousClientConfig(upstream))
	if err != nil {
		return nil, fmt.Errorf("way to the API server: %w", err)
	}
	p := &Proxy{watches: map[int64]context.CancelFunc{}}
	p.forward = &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     transport,
		FlushInterval: -1, // the events of a watch, as they come
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	p.server = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	p.server.EnableHTTP2 = true
	p.server.StartTLS()
	return p, nil
}

// Close ends the Proxy, its watches first.
func (p *Proxy) Close() {
	p.CutWatches()
	p.server.CloseClientConnections()
	p.server.Close()
}

// Config is the way through the Proxy of whoever has the token.
func (p *Proxy) Config(token string) *rest.Config {
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.server.Certificate().Raw})
	return &rest.Config{Host: p.server.URL, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: authority}, QPS: -1}
}

// Set changes the weather; nil clears it.
func (p *Proxy) Set(sky Sky) { p.sky.Store(&sky) }

// Calls is how many calls have come so far, whatever became of them.
func (p *Proxy) Calls() int { return int(p.calls.Load()) }

// CutWatches ends all watches that are open, in the midst of their stream, and returns how many there were.
func (p *Proxy) CutWatches() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, cut := range p.watches {
		cut()
	}
	return len(p.watches)
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	number := p.calls.Add(1)
	forward := p.forward
	if IsWatch(r) {
		ctx, cut := context.WithCancel(r.Context())
		defer p.watched(number, cut)()
		r = r.WithContext(ctx)
	}
	if sky := p.sky.Load(); sky != nil && *sky != nil {
		if fault := (*sky)(r); fault != nil {
			fault(w, r, forward)
			return
		}
	}
	forward.ServeHTTP(w, r)
}

// watched keeps what cuts a watch until the function that it returns is called.
func (p *Proxy) watched(number int64, cut context.CancelFunc) (ended func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watches[number] = cut
	return func() {
		cut()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.watches, number)
	}
}
