package daemon

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/cmd/hsm-signer/internal/anchors"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/kube"
)

// A servingController is the controller as /readyz sees it.
type servingController interface {
	Ready() error
	Permitted() error
	Leads() bool
	Leader() string // empty if it is not known
	Open() kube.Open
}

// A file is one of the configuration that is read again.
type file interface {
	Refusal() error // why the file as it is now is refused
}

// A shownFile says in words what is wrong with it, if anything, and what is in use.
type shownFile interface {
	file
	State() string
}

// health knows whether the process can do its work.
type health struct {
	controller  servingController
	credential  credentialState
	policy      shownFile
	signing     *signingHealth             // nil in a shadow
	caFile      shownFile                  // nil in a shadow
	nextFile    file                       // of the next CA; nil: there is none
	anchorsFile file                       // nil: no trust anchors are published
	bundle      interface{ Fault() error } // nil: no trust anchors are published
	faults      faultTimes
}

// newHealth returns the health of a process; what signs is nil in a shadow, and so is the bundle.
func newHealth(c servingController, credential credentialState, signs *signing, f files,
	bundle *anchors.Publisher) *health {
	h := &health{controller: c, credential: credential, policy: f.policy}
	if signs != nil {
		h.signing, h.caFile = signs.health, f.ca
	}
	if f.next != nil {
		h.nextFile = f.next
	}
	if bundle != nil {
		h.anchorsFile, h.bundle = f.anchors, bundle
	}
	return h
}

// A part is one of the things that must be ready.
type part struct {
	name  string
	err   error     // why it is not ready
	since time.Time // since when; zero if it is ready
	note  string    // what is worth knowing although it is
}

// parts returns the states of all parts. It only reads what is known, so it costs nothing.
func (h *health) parts() []part {
	parts := []part{{name: "requests", err: h.controller.Ready()},
		{name: "permissions", err: h.controller.Permitted()},
		credentialPart(h.credential, time.Now())}
	if h.signing != nil {
		parts = append(parts, h.signing.parts(h.caFile.State())...)
	}
	return h.faults.note(parts)
}

// report writes each part, and why it is not ready, and reports whether all are. Each name begins
// with the prefix.
func (h *health) report(w io.Writer, prefix string) (ready bool) {
	parts := h.parts()
	for _, p := range parts {
		switch {
		case p.err != nil:
			fmt.Fprintf(w, "[-] %s%s: %v (since %s)\n", prefix, p.name, p.err,
				p.since.UTC().Format(time.RFC3339))
		case p.note != "":
			fmt.Fprintf(w, "[+] %s%s ok: %s\n", prefix, p.name, p.note)
		default:
			fmt.Fprintf(w, "[+] %s%s ok\n", prefix, p.name)
		}
	}
	fmt.Fprintf(w, "%spolicy %s\n", prefix, h.policy.State())
	if h.signing != nil {
		h.signing.other.write(w, prefix)
	}
	h.writeNext(w, prefix)
	fmt.Fprintf(w, "%sleads %t\n", prefix, h.controller.Leads())
	fmt.Fprintf(w, "%sopen requests: %s\n", prefix, openInWords(h.controller.Open(), time.Now()))
	return !slices.ContainsFunc(parts, func(p part) bool { return p.err != nil })
}

// writeNext writes what is wrong with the file of the next CA, if anything.
func (h *health) writeNext(w io.Writer, prefix string) {
	if h.nextFile == nil {
		return
	}
	if err := h.nextFile.Refusal(); err != nil {
		fmt.Fprintf(w, "%snext CA: NEXT_CA_CERT_FILE in its present form is refused, and the "+
			"certificate before it stays in use: %v\n", prefix, err)
	}
}

// readiness shows at each scrape which part is ready, and since when one is not.
type readiness struct{ health *health }

var (
	partReady = prometheus.NewDesc("hsm_signer_ready",
		"1 while this part of /readyz is ok: requests (they are watched), permissions, credential "+
			"(not expired), token, ca (within its dates), journal, clock (of the API server, with "+
			"POD_CERTIFICATES: near enough), rotation (of the CA, while there is one: its phase is "+
			"clear); else 0.", []string{"part"}, nil)
	partSince = prometheus.NewDesc("hsm_signer_unhealthy_since_timestamp_seconds",
		"Since when this part is not well; 0: it is well. The parts of hsm_signer_ready, and "+
			"lease (nobody is known to lead), other_ca (the key of a rotation that does not sign "+
			"now), trust_bundle (it is not published), and the files policy_file, ca_file, "+
			"next_ca_file, trust_bundle_file and kubeconfig (the changed file is refused).",
		[]string{"part"}, nil)
)

// Describe is [prometheus.Collector]'s.
func (r readiness) Describe(all chan<- *prometheus.Desc) {
	all <- partReady
	all <- partSince
}

// Collect is [prometheus.Collector]'s.
func (r readiness) Collect(all chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, part string) {
		all <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, part)
	}
	parts := r.health.parts()
	for _, p := range parts {
		gauge(partReady, metrics.Number(p.err == nil), p.name)
	}
	for _, p := range append(parts, r.health.remarks()...) {
		since := 0.0
		if !p.since.IsZero() {
			since = float64(p.since.Unix())
		}
		gauge(partSince, since, p.name)
	}
}

// state returns the state in one line.
func (h *health) state() string {
	var wrong []string
	for _, p := range h.parts() {
		if p.err != nil {
			text := strings.Join(strings.Fields(p.err.Error()), " ") // one line
			wrong = append(wrong, fmt.Sprintf("%s: %s", p.name, text))
		}
	}
	switch {
	case len(wrong) > 0:
		return "not ready: " + strings.Join(wrong, "; ")
	case !h.controller.Leads():
		return "ready, and stands by"
	}
	return "ready"
}
