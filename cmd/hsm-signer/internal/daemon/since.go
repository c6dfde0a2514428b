package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/kube"
)

// faultTimes remembers since when each part has been at fault. Its zero value is ready to use, and
// safe for concurrent use.
type faultTimes struct {
	mu    sync.Mutex
	since map[string]time.Time
}

// note sets since when each of the parts is at fault: since the first note of it.
func (f *faultTimes) note(parts []part) []part {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.since == nil {
		f.since = map[string]time.Time{}
	}
	for i, p := range parts {
		switch began, faulty := f.since[p.name]; {
		case p.err == nil:
			delete(f.since, p.name)
		case faulty:
			parts[i].since = began
		default:
			parts[i].since = time.Now()
			f.since[p.name] = parts[i].since
		}
	}
	return parts
}

// errNoLeader is the fault of the lease.
var errNoLeader = errors.New("nobody is known to lead")

// remarks are the states of what does not make the process unready: the lease, and the files that
// are read again.
func (h *health) remarks() []part {
	remarks := []part{{name: "policy_file", err: h.policy.Refusal()},
		{name: "kubeconfig", err: h.credential.Refusal()}}
	if h.signing != nil {
		lease := part{name: "lease"}
		if !h.controller.Leads() && h.controller.Leader() == "" {
			lease.err = errNoLeader
		}
		remarks = append(remarks, part{name: "ca_file", err: h.caFile.Refusal()}, lease)
		remarks = append(remarks, h.signing.other.remarks()...)
	}
	if h.nextFile != nil {
		remarks = append(remarks, part{name: "next_ca_file", err: h.nextFile.Refusal()})
	}
	if h.bundle != nil {
		remarks = append(remarks, part{name: "trust_bundle_file", err: h.anchorsFile.Refusal()},
			part{name: "trust_bundle", err: h.bundle.Fault()})
	}
	return h.faults.note(remarks)
}

// watch checks all parts until the context ends, so that it is known since when one is at fault.
func (h *health) watch(ctx context.Context) error {
	return poll.Every(ctx, healthInterval, func(context.Context) {
		h.parts()
		h.remarks()
	})
}

// openInWords describes the open requests in one line.
func openInWords(o kube.Open, now time.Time) string {
	if !o.Known {
		return "not counted here: another replica leads, or the API server was not reached yet"
	}
	var states []string
	for _, state := range kube.OpenStates {
		if n := o.States[state]; n > 0 {
			states = append(states, fmt.Sprintf("%d %s", n, stateNames[state]))
		}
	}
	if len(states) == 0 {
		return "none"
	}
	text := strings.Join(states, ", ") + "; the oldest was created " +
		max(0, now.Sub(o.Oldest)).Round(time.Second).String() + " ago"
	if o.Unanswered >= time.Second {
		text += "; no answer for " + o.Unanswered.Round(time.Second).String()
	}
	return text
}

// stateNames are what the states are called in a text.
var stateNames = map[kube.OpenState]string{
	kube.OpenPending: "pending", kube.OpenApproved: "approved without a certificate",
	kube.OpenUnapproved: "waiting for an approval",
	kube.OpenHeld:       "held back for slow clients", kube.OpenWaiting: "waiting for a fact",
	kube.OpenOverBudget: "over budget", kube.OpenRefusalHeld: "refused, but held open",
	kube.OpenFailing: "failing",
}
