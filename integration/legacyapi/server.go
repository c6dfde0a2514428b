// Package legacyapi makes a new API server look like an old one to clients that use certificate
// requests. It serves the storage of certificates.k8s.io/v1 as v1beta1 and hides v1, as Kubernetes
// before 1.19 did. With Before118 requests have no signer names either.
//
// A Server is a reverse proxy on 127.0.0.1 with TLS. It passes on the callers' bearer
// tokens, so the real API server authenticates and authorizes them. Requests for other resources
// pass unchanged; discovery is answered in the old form.
//
// Watches behave as on old servers too. Kubernetes 1.21 refuses a watch that asks for a bookmark at
// the end of the initial events. Before 1.18 a server ignores that parameter, so a client that
// waits for the bookmark waits forever. What v1 forbids and v1beta1 allowed (a request without
// usages, a second certificate in place of the first) stays forbidden.
package legacyapi

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"

	"k8s.io/client-go/rest"
)

// Options configure a Server.
type Options struct {
	// Upstream is the client configuration of the real API server. Only its address and CA are
	// used, not its credentials.
	Upstream *rest.Config
	// Before118 removes signer names from all answers, rejects field selectors for them, and
	// accepts requests without one.
	Before118 bool
	// SignerName is stored in requests that have none. Before118 needs it.
	SignerName string
}

// A Server is a running proxy.
type Server struct {
	options Options
	proxy   *httputil.ReverseProxy
	server  *httptest.Server

	upgraded context.Context // ends when the old API server is replaced
	upgrade  context.CancelFunc
}

// Start starts a Server, which runs until Close.
func Start(o Options) (*Server, error) {
	if o.Before118 && o.SignerName == "" {
		return nil, errors.New("Options.Before118 needs Options.SignerName, which requests are " +
			"stored with")
	}
	upstream, err := url.Parse(o.Upstream.Host)
	if err != nil {
		return nil, fmt.Errorf("address of the real API server: %w", err)
	}
	transport, err := rest.TransportFor(rest.AnonymousClientConfig(o.Upstream))
	if err != nil {
		return nil, fmt.Errorf("transport to the real API server: %w", err)
	}
	s := &Server{options: o}
	s.upgraded, s.upgrade = context.WithCancel(context.Background())
	s.proxy = &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(upstream) },
		Transport:      transport,
		ModifyResponse: s.modifyResponse,
	}
	s.server = httptest.NewTLSServer(http.HandlerFunc(s.serve))
	return s, nil
}

// Close stops the Server, closes its connections and waits until both are done.
func (s *Server) Close() {
	s.upgrade()
	s.server.CloseClientConnections()
	s.server.Close()
}

// Upgrade replaces the old API server by the real one: requests in progress end, and v1beta1 is no
// longer served.
func (s *Server) Upgrade() { s.upgrade() }

// Config returns the client configuration of the token's owner for the Server.
func (s *Server) Config(token string) *rest.Config {
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: s.server.Certificate().Raw})
	return &rest.Config{Host: s.server.URL, BearerToken: token, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: authority}}
}

const (
	groupPath = "/apis/certificates.k8s.io"
	newPath   = groupPath + "/v1"
	oldPath   = groupPath + "/v1beta1"
	requests  = "certificatesigningrequests"
)

// rewriterKey is the context key of the rewriter of the answer.
type rewriterKey struct{}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if s.upgraded.Err() != nil {
		s.proxy.ServeHTTP(w, r)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.upgraded, cancel)()
	r = r.WithContext(ctx)
	switch {
	case r.URL.Path == "/api":
		s.forward(w, r, nil)
	case r.URL.Path == "/apis":
		s.forward(w, r, oldGroups)
	case r.URL.Path == groupPath:
		s.forward(w, r, oldGroup)
	case r.URL.Path == oldPath:
		r.URL.Path = newPath
		s.forward(w, r, oldResources)
	case within(r.URL.Path, oldPath+"/"+requests):
		s.serveRequests(w, r)
	case within(r.URL.Path, groupPath):
		http.NotFound(w, r)
	default:
		s.proxy.ServeHTTP(w, r)
	}
}

// forward passes a request on, asks for JSON, and rewrites each object of the answer. A nil rewrite
// leaves them unchanged.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, rewrite rewriter) {
	r = r.WithContext(context.WithValue(r.Context(), rewriterKey{}, rewrite))
	r.Header.Set("Accept", "application/json")
	r.Header.Del("Accept-Encoding")
	s.proxy.ServeHTTP(w, r)
}

func (s *Server) modifyResponse(response *http.Response) error {
	rewrite, _ := response.Request.Context().Value(rewriterKey{}).(rewriter)
	if rewrite == nil {
		return nil
	}
	response.Header.Del("Content-Length")
	response.ContentLength = -1
	response.Body = newRewritten(response.Body, rewrite)
	return nil
}
