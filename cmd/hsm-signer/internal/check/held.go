package check

import (
	"context"
	"fmt"
	"strings"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/cmd/hsm-signer/internal/refusal"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// heldShown is how many requests a line names.
const heldShown = 5

// checkHeld names the requests of running pods that the policy refuses: they are denied after
// POD_REFUSAL_DELAY.
func checkHeld(ctx context.Context, s *config.Service, report reporter) {
	const name = "requests of running pods"
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	decider := judge.Judge{Decider: s.Policy, CA: s.CA}
	hold := refusal.New(decider, s.Policy.Hash(), s.PodRefusalDelay)
	var held []string
	err := kube.JudgeOpen(ctx, s.Client, s.PodRequests(), hold,
		func(request string, verdict policy.Verdict) {
			if v, waits := verdict.(*policy.Waiting); waits && v.Held != nil {
				held = append(held, request+": "+v.Held.Message())
			}
		})
	switch {
	case len(held) > 0:
		report(name, heldInWords(held, s.PodRefusalDelay.String()), errWarning)
	case err != nil:
		report(name, fmt.Sprintf("may be refused; unknown: %v", err), errUnread)
	default:
		report(name, "the policy refuses none that is open", nil)
	}
}

// heldInWords names the first of the requests.
func heldInWords(held []string, delay string) string {
	text := fmt.Sprintf("the policy refuses %s, to be denied when it has been in force for %s; "+
		"then the pod's volume is never updated again: correct the policy "+
		"(docs/runbook.md: HSMSignerRefusalsHeld): ", terminal.Plural(len(held), "request"), delay)
	text += strings.Join(held[:min(len(held), heldShown)], "; ")
	if more := len(held) - heldShown; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text
}
