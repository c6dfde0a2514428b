// Package health knows whether a process can do its work for a CA.
//
// Duty: gather the states of the parts that must be ready, and of what is only a remark; say since
// when each is at fault; show them in /readyz, and in one line; and tell the election whether the
// process is fit to lead.
//
// Contract: nothing is checked here. Each part is asked for what it knows already, so a probe costs
// nothing, and is answered while a token or the API server hangs.
package health

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/rotation"
	"hsm-signer/kube"
)

// A Controller is the controller as /readyz sees it.
type Controller interface {
	Ready() error
	Permitted() error
	Leads() bool
	Leader() string // empty if it is not known
	Open() kube.Open
}

// A File is one of the configuration that is read again.
type File interface {
	Refusal() error // why the file as it is now is refused
}

// A ShownFile says in words what is wrong with it, if anything, and what is in use.
type ShownFile interface {
	File
	State() string
}

// A Checked part knows the result of its last check.
type Checked interface {
	Fault() error // nil: it was well
}

// Health knows whether the process can do its work. Its exported fields must not change once it is
// in use; then it is safe for concurrent use.
type Health struct {
	Controller Controller
	Credential Credential
	Policy     ShownFile
	CA         ShownFile // nil in a shadow
	NextCA     File      // nil without NEXT_CA_CERT_FILE
	Anchors    File      // TRUST_BUNDLE_FILE; nil: no trust anchors are published
	Bundle     Checked   // of the trust anchors as published; nil: none are
	Signing    *Signing  // nil in a shadow

	faults faultTimes
}

// A Part is one of the things that must be ready, or are worth a remark.
type Part struct {
	Name  string
	Err   error     // why it is not ready
	Since time.Time // since when; zero if it is ready
	Note  string    // what is worth knowing although it is
}

// Parts returns the states of all parts.
func (h *Health) Parts() []Part {
	parts := []Part{{Name: "requests", Err: h.Controller.Ready()},
		{Name: "permissions", Err: h.Controller.Permitted()},
		credentialPart(h.Credential, time.Now())}
	if h.Signing != nil {
		parts = append(parts, h.Signing.parts(h.CA.State())...)
	}
	return h.faults.note(parts)
}

// Report writes each part, and why it is not ready, and reports whether all are. Each name begins
// with the prefix.
func (h *Health) Report(w io.Writer, prefix string) (ready bool) {
	parts := h.Parts()
	for _, p := range parts {
		switch {
		case p.Err != nil:
			fmt.Fprintf(w, "[-] %s%s: %s (since %s)\n", prefix, p.Name, oneLine(p.Err),
				p.Since.UTC().Format(time.RFC3339))
		case p.Note != "":
			fmt.Fprintf(w, "[+] %s%s ok: %s\n", prefix, p.Name, p.Note)
		default:
			fmt.Fprintf(w, "[+] %s%s ok\n", prefix, p.Name)
		}
	}
	fmt.Fprintf(w, "%spolicy %s\n", prefix, h.Policy.State())
	if h.Signing != nil {
		h.Signing.writeOther(w, prefix)
	}
	h.writeNext(w, prefix)
	fmt.Fprintf(w, "%sleads %t\n", prefix, h.Controller.Leads())
	fmt.Fprintf(w, "%sopen requests: %s\n", prefix, openInWords(h.Controller.Open(), time.Now()))
	return !slices.ContainsFunc(parts, func(p Part) bool { return p.Err != nil })
}

// oneLine returns the text of an error, which may be several, in one line.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// writeNext writes what is wrong with the file of the next CA, if anything.
func (h *Health) writeNext(w io.Writer, prefix string) {
	if h.NextCA == nil {
		return
	}
	if err := h.NextCA.Refusal(); err != nil {
		fmt.Fprintf(w, "%s%sNEXT_CA_CERT_FILE in its present form is refused, and the certificate "+
			"before it stays in use: %s\n", prefix, rotation.NextFileLine, oneLine(err))
	}
}

// State returns the state in one line.
func (h *Health) State() string {
	var wrong []string
	for _, p := range h.Parts() {
		if p.Err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: %s", p.Name, oneLine(p.Err)))
		}
	}
	switch {
	case len(wrong) > 0:
		return "not ready: " + strings.Join(wrong, "; ")
	case !h.Controller.Leads():
		return "ready, and stands by"
	}
	return "ready"
}

// watchInterval is the time between two checks of all parts.
const watchInterval = 2 * time.Second

// Watch checks all parts until the context ends, so that it is known since when one is at fault.
func (h *Health) Watch(ctx context.Context) error {
	return poll.Every(ctx, watchInterval, func(context.Context) {
		h.Parts()
		h.Remarks()
	})
}
