package check

import (
	"context"
	"fmt"
	"strings"

	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/cmd/hsm-signer/internal/refusal"
	"hsm-signer/cmd/hsm-signer/internal/service"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// heldShown is how many requests a line names.
const heldShown = 5

// checkHeld names the requests of running pods that the policy refuses, which are denied after
// POD_REFUSAL_DELAY, and those that show no key.
func checkHeld(ctx context.Context, s *service.Service, report reporter) {
	const name = "requests of running pods"
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	decider := judge.Judge{Decider: s.Policy, CA: s.CA}
	hold := refusal.New(decider, s.Policy.Hash(), s.PodRefusalDelay)
	var held, ignored []string
	err := kube.JudgeOpen(ctx, s.Client, s.PodRequests(), hold,
		func(request string, verdict policy.Verdict) {
			if v, waits := verdict.(*policy.Waiting); waits && v.Held != nil {
				held = append(held, request+": "+v.Held.Message())
			}
		}, func(request, why string) { ignored = append(ignored, request+": "+why) })
	if len(ignored) > 0 {
		report(name, terminal.Plural(len(ignored), "request")+" cannot be answered: "+
			first(ignored), errWarning)
	}
	switch {
	case len(held) > 0:
		report(name, fmt.Sprintf("the policy refuses %s, to be denied when it has been in force "+
			"for %s; then the pod's volume is never updated again: correct the policy "+
			"(docs/runbook.md: HSMSignerRefusalsHeld): %s", terminal.Plural(len(held), "request"),
			s.PodRefusalDelay, first(held)), errWarning)
	case err != nil:
		report(name, fmt.Sprintf("may be refused; unknown: %v", err), errUnread)
	default:
		report(name, "the policy refuses none that is open", nil)
	}
}

// first joins the first of the texts.
func first(texts []string) string {
	text := strings.Join(texts[:min(len(texts), heldShown)], "; ")
	if more := len(texts) - heldShown; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text
}
