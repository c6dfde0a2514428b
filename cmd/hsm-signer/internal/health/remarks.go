package health

import (
	"errors"
	"sync"
	"time"
)

// faultTimes remembers since when each part has been at fault. Its zero value is ready to use, and
// safe for concurrent use.
type faultTimes struct {
	mu    sync.Mutex
	since map[string]time.Time
}

// note sets since when each of the parts is at fault: since the first note of it.
func (f *faultTimes) note(parts []Part) []Part {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.since == nil {
		f.since = map[string]time.Time{}
	}
	for i, p := range parts {
		switch began, faulty := f.since[p.Name]; {
		case p.Err == nil:
			delete(f.since, p.Name)
		case faulty:
			parts[i].Since = began
		default:
			parts[i].Since = time.Now()
			f.since[p.Name] = parts[i].Since
		}
	}
	return parts
}

// errNoLeader is the fault of the lease.
var errNoLeader = errors.New("nobody is known to lead")

// Remarks are the states of what does not make the process unready: the lease, and the files that
// are read again.
func (h *Health) Remarks() []Part {
	remarks := []Part{{Name: "policy_file", Err: h.Policy.Refusal()},
		{Name: "kubeconfig", Err: h.Credential.Refusal()}}
	if h.Signing != nil {
		lease := Part{Name: "lease"}
		if !h.Controller.Leads() && h.Controller.Leader() == "" {
			lease.Err = errNoLeader
		}
		remarks = append(remarks, Part{Name: "ca_file", Err: h.CA.Refusal()}, lease)
		remarks = append(remarks, h.Signing.otherRemarks()...)
	}
	if h.NextCA != nil {
		remarks = append(remarks, Part{Name: "next_ca_file", Err: h.NextCA.Refusal()})
	}
	if h.Bundle != nil {
		remarks = append(remarks, Part{Name: "trust_bundle_file", Err: h.Anchors.Refusal()},
			Part{Name: "trust_bundle", Err: h.Bundle.Fault()})
	}
	return h.faults.note(remarks)
}
