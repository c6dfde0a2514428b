// Package front makes a new API server look like an old one, as far as
// certificate requests go: it serves the storage of certificates.k8s.io/v1 as
// v1beta1, and hides v1, as Kubernetes before 1.19 did. With Before118 there are
// no signer names either.
//
// A Front is a reverse proxy on 127.0.0.1, over plain HTTP. Callers come with
// bearer tokens, which are passed on, so they are to the real server who they
// are; everything that is not about certificate requests is passed on
// unchanged, but for discovery, which is answered in the old form.
//
// What informers rely on is as old servers had it, too: a watch that asks to be
// told the end of its initial events is refused as Kubernetes 1.21 refuses it,
// and before 1.18 the wish is ignored, so that who waits for that waits in vain.
// What v1 forbids and v1beta1 allowed
// (a request without usages, a certificate replaced by another) stays forbidden.
package front

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"

	"k8s.io/client-go/rest"
)

// Options say what a Front stands before, and how old it looks.
type Options struct {
	// Upstream is the way to the real API server. Only its address and CA are
	// used, not its credentials.
	Upstream *rest.Config
	// Before118 leaves signer names out of all answers, knows no field selector
	// for them, and takes requests without one.
	Before118 bool
	// SignerName is what requests without a signer name are stored with; needed
	// when Before118 is set.
	SignerName string
}

// Front is a proxy that runs.
type Front struct {
	options  Options
	proxy    *httputil.ReverseProxy
	listener net.Listener
	server   *http.Server
	served   chan error

	upgraded context.Context // ends when the old API server is replaced
	upgrade  context.CancelFunc
}

// Start starts a Front. It runs until Close.
func Start(o Options) (*Front, error) {
	if o.Before118 && o.SignerName == "" {
		return nil, errors.New("a front before 1.18 needs Options.SignerName, to store requests with")
	}
	upstream, err := url.Parse(o.Upstream.Host)
	if err != nil {
		return nil, fmt.Errorf("address of the real API server: %w", err)
	}
	transport, err := rest.TransportFor(rest.AnonymousClientConfig(o.Upstream))
	if err != nil {
		return nil, fmt.Errorf("way to the real API server: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &Front{options: o, listener: listener, served: make(chan error, 1)}
	f.upgraded, f.upgrade = context.WithCancel(context.Background())
	f.proxy = &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(upstream) },
		Transport:      transport,
		ModifyResponse: f.modifyResponse,
	}
	f.server = &http.Server{Handler: http.HandlerFunc(f.serve), ReadHeaderTimeout: time.Minute}
	go func() { f.served <- f.server.Serve(listener) }()
	return f, nil
}

// Close ends the Front and all its connections, and waits for that.
func (f *Front) Close() error {
	f.upgrade()
	err := f.server.Close()
	if served := <-f.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// Upgrade replaces the old API server by the real one: what the old one was at ends, and v1beta1 is
// not there any more.
func (f *Front) Upgrade() { f.upgrade() }

// Config is the way to the Front of whoever has the token.
func (f *Front) Config(token string) *rest.Config {
	return &rest.Config{Host: "http://" + f.listener.Addr().String(), BearerToken: token, QPS: -1}
}

const (
	groupPath = "/apis/certificates.k8s.io"
	newPath   = groupPath + "/v1"
	oldPath   = groupPath + "/v1beta1"
	requests  = "certificatesigningrequests"
)

// rewriterKey is the context's key for how the answer is to be rewritten.
type rewriterKey struct{}

func (f *Front) serve(w http.ResponseWriter, r *http.Request) {
	if f.upgraded.Err() != nil {
		f.proxy.ServeHTTP(w, r)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(f.upgraded, cancel)()
	r = r.WithContext(ctx)
	switch {
	case r.URL.Path == "/api":
		f.forward(w, r, nil)
	case r.URL.Path == "/apis":
		f.forward(w, r, oldGroups)
	case r.URL.Path == groupPath:
		f.forward(w, r, oldGroup)
	case r.URL.Path == oldPath:
		r.URL.Path = newPath
		f.forward(w, r, oldResources)
	case within(r.URL.Path, oldPath+"/"+requests):
		f.serveRequests(w, r)
	case within(r.URL.Path, groupPath):
		http.NotFound(w, r)
	default:
		f.proxy.ServeHTTP(w, r)
	}
}

// forward passes a request on that is to be answered in JSON, of which each
// object is rewritten; nil leaves it as it is.
func (f *Front) forward(w http.ResponseWriter, r *http.Request, rewrite rewriter) {
	r = r.WithContext(context.WithValue(r.Context(), rewriterKey{}, rewrite))
	r.Header.Set("Accept", "application/json")
	r.Header.Del("Accept-Encoding")
	f.proxy.ServeHTTP(w, r)
}

func (f *Front) modifyResponse(response *http.Response) error {
	rewrite, _ := response.Request.Context().Value(rewriterKey{}).(rewriter)
	if rewrite == nil {
		return nil
	}
	response.Header.Del("Content-Length")
	response.ContentLength = -1
	response.Body = newRewritten(response.Body, rewrite)
	return nil
}
