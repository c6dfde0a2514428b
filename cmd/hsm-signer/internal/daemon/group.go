package daemon

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/listener"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/sdnotify"
	"hsm-signer/cmd/hsm-signer/internal/serve"
	"hsm-signer/cmd/hsm-signer/internal/service"
	"hsm-signer/cmd/hsm-signer/internal/status"
	"hsm-signer/docs"
)

// A Group is the daemons of a process, one for each CA. They share its addresses and its
// supervisor.
type Group struct {
	config  *config.Config // of what they share
	daemons []*Daemon
	metrics *metrics.Process
	losses  losses
	logger  hclog.Logger
}

// New puts a daemon together for each CA; [Group.Run] runs them, and must be called. It is not in
// touch with a token, the API server or the disk. An error is one of the configuration.
func New(c *config.Config, services []*service.Service, counts *metrics.Process,
	logger hclog.Logger) (*Group, error) {
	g := &Group{config: c, metrics: counts, logger: logger}
	for _, s := range services {
		log := logger
		if s.Name != "" {
			log = logger.With("ca", s.Name)
		}
		d, err := newDaemon(s, counts.Of(s.Name), g.losses.of(s.Name, log), log)
		if err != nil {
			return nil, err
		}
		g.daemons = append(g.daemons, d)
	}
	return g, nil
}

// Run serves until the context ends, or until it is clear that only a human can help. Nothing is
// served before one CA has tried its token.
func (g *Group) Run(ctx context.Context) error {
	open, err := serve.Listen(ctx, g.config)
	if err != nil {
		return err
	}
	defer open.Close()
	g.announce()
	tried := make(chan struct{})
	first := sync.OnceFunc(func() { close(tried) })
	var background []func(context.Context) error
	for _, d := range g.daemons {
		background = append(background, func(ctx context.Context) error {
			return d.run(ctx, first)
		})
	}
	after := func(f func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			select {
			case <-tried:
				return f(ctx)
			case <-ctx.Done():
				return nil
			}
		}
	}
	background = append(background, after(sdnotify.New(g, g.logger.Named("health")).Run))
	for _, e := range g.endpoints(open) {
		background = append(background, after(func(ctx context.Context) error {
			return e.Serve(ctx, g.logger.Named("http"))
		}))
	}
	return poll.All(ctx, background...)
}

// announce logs which CAs share a module, and so its fate.
func (g *Group) announce() {
	first := map[string]string{}
	for _, d := range g.daemons {
		module := d.service.Token.Module
		other, shared := first[module]
		if first[module] = d.service.Name; shared && d.signing != nil {
			d.logger.Info("this CA shares its PKCS#11 module with another one: what stops the "+
				"module stops both", "module", module, "other", other)
		}
	}
}

// endpoints are what is served: an address for probes and scrapers, and one for people.
func (g *Group) endpoints(open serve.Listeners) []serve.Endpoint {
	all := []serve.Endpoint{{
		Variable: "LISTEN_ADDRESS", Listener: open["LISTEN_ADDRESS"],
		Hosts: serve.HealthHosts(g.config), Handler: g.handler(), Said: "listening",
	}}
	if opened := open["STATUS_ADDRESS"]; opened != nil {
		all = append(all, serve.Endpoint{
			Variable: "STATUS_ADDRESS", Listener: opened, Hosts: serve.StatusHosts(g.config),
			Handler: listener.DefaultInFlight.Guard(g.statusHandler()),
			Said:    "the status page is there",
		})
	}
	return all
}

// statusHandler serves the status page, with a list of the CAs if they have names.
func (g *Group) statusHandler() http.Handler {
	var pages []status.Source
	for _, d := range g.daemons {
		if d.service.Name == "" {
			return status.Handler(d.page.Page, docs.Runbook)
		}
		pages = append(pages, status.Source{CA: d.service.Name, Now: d.page.Page})
	}
	return status.IndexHandler(pages, docs.Runbook)
}

// handler serves /livez, /readyz, /readyz/CA and /metrics. Only a request for /metrics waits for
// others.
func (g *Group) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez",
		func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		g.readyz(w, g.daemons...)
	})
	for _, d := range g.daemons {
		if d.service.Name != "" {
			mux.HandleFunc("GET /readyz/"+d.service.Name,
				func(w http.ResponseWriter, _ *http.Request) { g.readyz(w, d) })
		}
	}
	mux.Handle("GET /metrics", listener.DefaultInFlight.Guard(g.metrics.Handler()))
	return mux
}

// readyz reports each part of the daemons, and why it is not ready.
func (g *Group) readyz(w http.ResponseWriter, daemons ...*Daemon) {
	var text bytes.Buffer
	ready := true
	for _, d := range daemons {
		prefix := ""
		if d.service.Name != "" {
			prefix = d.service.Name + "/"
		}
		ready = d.health.Report(&text, prefix) && ready
	}
	if !ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = text.WriteTo(w) // whoever asked may have gone
}

// State returns the state of all CAs in one line.
func (g *Group) State() string {
	var all []string
	for _, d := range g.daemons {
		if d.service.Name == "" {
			return d.health.State()
		}
		all = append(all, d.service.Name+": "+d.health.State())
	}
	return strings.Join(all, "; ")
}
