package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/cmd/hsm-signer/internal/listener"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
)

// health knows whether the process can do its work, and reports it over HTTP.
type health struct {
	requests   func() error
	permits    func() error
	leads      func() bool
	policy     func() string
	metrics    http.Handler
	supervisor *notifier
	logger     hclog.Logger
	// Only for a process that signs; nil in a shadow.
	token     func(context.Context) error
	ca        func() *issuer.CA
	caFile    func() string // what is wrong with it; empty if nothing is
	journal   func() error
	suspicion func() error // what a witness makes suspect about the journal
	// another process may lead and have the journal open, and this one stands by
	standby   bool
	again     <-chan struct{} // closed when the token should be checked again at once
	restarted bool            // its supervisor restarts it, whatever the exit code

	mu      sync.Mutex
	waiting error     // why the token is not ready; errNotLooked before the first check
	began   time.Time // when the check started that has not ended yet; zero if there is none
	crowded time.Time // since when the journal has too many unfinished requests; zero if it has not
}

func newHealth(policy func() string, metrics http.Handler, logger hclog.Logger) *health {
	return &health{policy: policy, metrics: metrics, supervisor: newNotifier(logger),
		logger: logger, waiting: errNotLooked}
}

// watchSigning includes token, CA and journal.
func (h *health) watchSigning(p *parts, file *caReloader, standby, restarted bool) {
	// from when it is open test signatures may be made
	h.token, h.again = h.tellOnce(p.key.Healthy, p.toldKeys()), p.journal.Opened()
	h.ca, h.caFile = p.issuer.CA, file.state
	h.journal, h.standby = p.journal.State, standby
	h.restarted, h.suspicion = restarted, p.witness.Suspicion
}

// A toldKey is a key whose attributes are logged once.
type toldKey struct {
	name       string
	attributes func(context.Context) (hsm.KeyAttributes, error)
	told       bool
}

// toldKeys are the CA's key and, if there is one, the checkpoint key.
func (p *parts) toldKeys() []*toldKey {
	keys := []*toldKey{{name: "the CA's key", attributes: p.key.Attributes}}
	if p.checkpoints != nil {
		keys = append(keys,
			&toldKey{name: "the checkpoint key", attributes: p.checkpoints.Key.Attributes})
	}
	return keys
}

// tellOnce returns a function that checks the token, and logs the attributes of each key as soon as
// they are known.
func (h *health) tellOnce(look func(context.Context) error,
	keys []*toldKey) func(context.Context) error {
	return func(ctx context.Context) error {
		err := look(ctx)
		for _, key := range keys {
			if !key.told && (err == nil || warm(err)) {
				attributes, attributesErr := key.attributes(ctx)
				key.told = h.tellOf(key.name, attributes, attributesErr)
			}
		}
		return err
	}
}

// tellOf logs wrong attributes of the key. It reports whether they are known.
func (h *health) tellOf(name string, attributes hsm.KeyAttributes, err error) (told bool) {
	switch {
	case err != nil:
	case !attributes.Holds():
		h.logger.Error(strings.ToUpper(name)+" CAN LEAVE ITS TOKEN, and is used anyway",
			"attributes", attributes.String())
	case attributes.Doubtful():
		h.logger.Warn("an attribute of "+name+" has an unexpected value, which alone is no "+
			"reason not to use the key", "attributes", attributes.String())
	}
	return err == nil
}

var errNotLooked = errors.New("not looked at yet")

// healthInterval is the time between two checks of the token.
const healthInterval = 2 * time.Second

// watch checks the token periodically, so that it is found again even if nobody requests a
// certificate. It returns an error if only a person can help: the PIN is rejected, or the first
// token holds a wrong key.
func (h *health) watch(ctx context.Context) error {
	if h.token == nil {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	neverReady, again := true, h.again
	for {
		h.begin()
		err := h.token(ctx)
		if ctx.Err() != nil {
			return nil
		}
		h.note(err)
		if h.ends(err, neverReady) {
			return err
		}
		neverReady = neverReady && err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-again:
			again = nil
		}
	}
}

// ends reports whether the process must end: only a person can help, or another process. A pod
// would be restarted again and again, so there a rejected PIN leaves the process running, not
// ready. The PIN is not tried again until its file has another.
func (h *health) ends(err error, neverReady bool) bool {
	return errors.Is(err, hsm.ErrPIN) && !h.restarted || errors.Is(err, hsm.ErrKey) && neverReady ||
		errors.Is(err, hsm.ErrHung)
}

func (h *health) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.began = time.Now()
}

// note keeps the state of the token, and logs each change.
func (h *health) note(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil && h.waiting != nil:
		h.logger.Info("the token is ready: it signs with the CA's key")
	case warm(err) && (h.waiting == nil || h.waiting.Error() != err.Error()):
		h.logger.Info("token connected; no test signature yet", "why", err)
	case err != nil && (h.waiting == nil || h.waiting.Error() != err.Error()):
		h.logger.Error("the token is not ready; requests stay pending", "error", err)
	}
	h.waiting, h.began = err, time.Time{}
}

// warm reports whether the token is connected but was not seen to sign, because the journal is not
// ready.
func warm(err error) bool { return errors.Is(err, hsm.ErrUnproven) }

// patience is how long a check may take before the token counts as not ready.
const patience = 15 * time.Second

// noted returns the result of the last check of the token, or that it does not respond.
func (h *health) noted() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.began.IsZero() && time.Since(h.began) > patience {
		return fmt.Errorf("the token has not answered since %s: its module hangs",
			h.began.Format(time.RFC3339))
	}
	return h.waiting
}

// handler serves /livez, /readyz and /metrics. Only a request for /metrics waits for others.
func (h *health) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez",
		func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", h.readyz)
	mux.Handle("GET /metrics", listener.DefaultInFlight.Guard(h.metrics))
	return mux
}

// journalPart returns the state of the journal.
func (h *health) journalPart() part {
	err := h.journal()
	if h.standby && errors.Is(err, journal.ErrLocked) {
		return part{name: "journal", note: "this process stands by: " + err.Error()}
	}
	const runbook = " (docs/runbook.md: HSMSignerJournalRolledBack)"
	p := part{name: "journal", err: err}
	if errors.Is(err, journal.ErrRolledBack) {
		p.err = fmt.Errorf("%w; nothing is signed: find out why, then run \"hsm-signer audit "+
			"accept-rollback\"%s", err, runbook)
	}
	if h.suspicion != nil && err == nil {
		if suspected := h.suspicion(); suspected != nil {
			p.note = suspected.Error() + runbook
		}
	}
	return p
}

// fit returns nil while token, CA and journal can serve requests.
func (h *health) fit() error {
	now := time.Now()
	return errors.Join(h.tokenPart().err, h.ca().ValidAt(now), h.journalFit(now))
}

// letOthersLead is how long a controller with too many unfinished requests leaves the lease to
// another.
const letOthersLead = time.Minute

// journalFit returns nil if the journal can serve. With too many unfinished requests, and no other
// fault, this controller stands for election again after a while: where nobody else leads, it must
// lead itself to publish them.
func (h *health) journalFit(now time.Time) error {
	err := h.journal()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !onlyUnfinished(err) {
		h.crowded = time.Time{}
		return err
	}
	if h.crowded.IsZero() {
		h.crowded = now
	}
	if now.Sub(h.crowded)%(2*letOthersLead) < letOthersLead {
		return err
	}
	return nil
}

func onlyUnfinished(err error) bool {
	faults := []error{journal.ErrBroken, journal.ErrDamaged, journal.ErrFull, journal.ErrSlow,
		journal.ErrClosed}
	return errors.Is(err, journal.ErrTooManyUnfinished) &&
		!slices.ContainsFunc(faults, func(fault error) bool { return errors.Is(err, fault) })
}

// A part is one of the things that must be ready.
type part struct {
	name string
	err  error  // why it is not ready
	note string // what is worth knowing although it is
}

// tokenPart returns the state of the token.
func (h *health) tokenPart() part {
	if err := h.noted(); !warm(err) {
		return part{name: "token", err: err}
	} else {
		return part{name: "token", note: err.Error()}
	}
}

func (h *health) parts() []part {
	parts := []part{{name: "requests", err: h.requests()}, {name: "permissions", err: h.permits()}}
	if h.token != nil {
		parts = append(parts, h.tokenPart(),
			part{name: "ca", err: h.ca().ValidAt(time.Now()), note: h.caFile()}, h.journalPart())
	}
	return parts
}

// readiness shows at each scrape which part is ready.
type readiness struct{ health *health }

var partReady = prometheus.NewDesc("hsm_signer_ready",
	"1 while this part of /readyz is ok: requests (they are watched), permissions, token, ca "+
		"(within its dates), journal; else 0.", []string{"part"}, nil)

// Describe is [prometheus.Collector]'s.
func (r readiness) Describe(all chan<- *prometheus.Desc) { all <- partReady }

// Collect is [prometheus.Collector]'s.
func (r readiness) Collect(all chan<- prometheus.Metric) {
	for _, p := range r.health.parts() {
		all <- prometheus.MustNewConstMetric(partReady, prometheus.GaugeValue,
			metrics.Number(p.err == nil),
			p.name)
	}
}

// readyz reports each part, and why it is not ready. It only reads what is known, so a request
// costs nothing.
func (h *health) readyz(w http.ResponseWriter, _ *http.Request) {
	parts := h.parts()
	if slices.ContainsFunc(parts, func(p part) bool { return p.err != nil }) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	for _, p := range parts {
		switch {
		case p.err != nil:
			fmt.Fprintf(w, "[-] %s: %v\n", p.name, p.err)
		case p.note != "":
			fmt.Fprintf(w, "[+] %s ok: %s\n", p.name, p.note)
		default:
			fmt.Fprintf(w, "[+] %s ok\n", p.name)
		}
	}
	fmt.Fprintf(w, "policy %s\n", h.policy())
	fmt.Fprintf(w, "leads %t\n", h.leads())
}
