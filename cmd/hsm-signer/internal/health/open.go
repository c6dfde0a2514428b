package health

import (
	"fmt"
	"strings"
	"time"

	"hsm-signer/kube"
)

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

// StateName returns what a state of open requests is called in a text.
func StateName(state kube.OpenState) string { return stateNames[state] }

var stateNames = map[kube.OpenState]string{
	kube.OpenPending: "pending", kube.OpenApproved: "approved without a certificate",
	kube.OpenUnapproved: "waiting for an approval",
	kube.OpenHeld:       "held back for slow clients", kube.OpenWaiting: "waiting for a fact",
	kube.OpenOverBudget: "over budget", kube.OpenRefusalHeld: "refused, but held open",
	kube.OpenFailing: "failing",
}
