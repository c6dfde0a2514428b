// Package faultproxy injects faults between a client and the API server.
//
// Duty: a Line carries bytes without interpreting them; it delays them, resets connections, and
// partitions the network. A Proxy understands HTTP: for each call it answers itself, loses the
// answer, or passes the call on.
//
// Contract: both listen on 127.0.0.1 only and end with Close. Until a test injects a fault they
// pass every call on unchanged, with the caller's own credentials. A change applies to later calls,
// or bytes, only.
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

// A Selector chooses the fault of each call. A nil Selector, or a nil Fault, passes the call on. A
// Selector must be safe for concurrent use.
type Selector func(r *http.Request) Fault

// A Proxy is a reverse proxy before the API server, which like that speaks TLS and HTTP/2.
type Proxy struct {
	server   *httptest.Server
	forward  http.Handler
	selector atomic.Pointer[Selector]
	calls    atomic.Int64

	mu      sync.Mutex
	watches map[int64]context.CancelFunc // by the number of the call
}

// NewProxy starts a Proxy before the API server of the config, whose credentials are not used.
func NewProxy(upstream *rest.Config) (*Proxy, error) {
	target, err := url.Parse(upstream.Host)
	if err != nil {
		return nil, fmt.Errorf("address of the API server: %w", err)
	}
	transport, err := rest.TransportFor(rest.AnonymousClientConfig(upstream))
	if err != nil {
		return nil, fmt.Errorf("transport to the API server: %w", err)
	}
	p := &Proxy{watches: map[int64]context.CancelFunc{}}
	p.forward = &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     transport,
		FlushInterval: -1, // pass the events of a watch on immediately
		ErrorHandler: func(http.ResponseWriter, *http.Request,
			error) {
			panic(http.ErrAbortHandler)
		},
	}
	p.server = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	p.server.EnableHTTP2 = true
	p.server.StartTLS()
	return p, nil
}

// Close ends the watches and the Proxy.
func (p *Proxy) Close() {
	p.CutWatches()
	p.server.CloseClientConnections()
	p.server.Close()
}

// Config returns the client configuration of the token's owner for the Proxy.
func (p *Proxy) Config(token string) *rest.Config {
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: p.server.Certificate().Raw})
	return &rest.Config{
		Host: p.server.URL, BearerToken: token, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: authority},
	}
}

// Set replaces the Selector; nil injects no faults.
func (p *Proxy) Set(selector Selector) { p.selector.Store(&selector) }

// Calls returns the number of calls so far, whatever their fault.
func (p *Proxy) Calls() int { return int(p.calls.Load()) }

// CutWatches ends all open watches in the middle of their streams, and returns their number.
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
	if selector := p.selector.Load(); selector != nil && *selector != nil {
		if fault := (*selector)(r); fault != nil {
			fault(w, r, forward)
			return
		}
	}
	forward.ServeHTTP(w, r)
}

// watched stores the function that ends a watch, until the caller calls ended.
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
