package overview

import (
	"fmt"
	"strings"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/credential"
	"hsm-signer/cmd/hsm-signer/internal/status"
	"hsm-signer/cmd/hsm-signer/internal/stuck"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/kube"
)

// heldHints warn of requests of running pods that are refused.
func heldHints(o kube.Open) []string {
	n := o.States[kube.OpenRefusalHeld]
	if n == 0 {
		return nil
	}
	return []string{fmt.Sprintf("The policy refuses certificates to running pods, whose "+
		"volumes freeze if it stays in force: %s held open, with the latest among the decisions "+
		"below. docs/runbook.md: HSMSignerRefusalsHeld", terminal.Plural(n, "request"))}
}

// cleanUpHints are what the status page says of finished requests.
func (o *Overview) cleanUpHints() (hints []string) {
	if crowded := config.AdviseCleanUp(o.Activity.requestCount()); crowded != "" {
		hints = append(hints, crowded)
	}
	if err := o.Controller.CleanUpFault(); err != nil {
		hints = append(hints,
			"Finished requests cannot be deleted, and are left to Kubernetes: "+err.Error())
	}
	return hints
}

// addCredential adds the credential for the API server to the status page.
func (o *Overview) addCredential(p *status.Page) {
	source := o.Health.Credential
	expiries := source.Expiries()
	p.Credential = credential.Describe(expiries, p.Now)
	for _, e := range expiries {
		if e.Soon(p.Now) && !e.Expired(p.Now) {
			p.Hints = append(p.Hints, "The credential for the API server must be renewed: "+
				e.At(p.Now)+". docs/runbook.md: HSMSignerCredentialExpiring")
		}
	}
}

// stuckShown is how many stuck pods the status page names.
const stuckShown = 5

// stuckHints are what the status page says of stuck pods.
func stuckHints(r stuck.Report) (hints []string) {
	if r.Fault != nil {
		hints = append(hints,
			"Which pods are stuck without their certificate is not known: "+r.Fault.Error())
	}
	if len(r.Pods) == 0 {
		return hints
	}
	var commands []string
	for _, pod := range r.Pods[:min(len(r.Pods), stuckShown)] {
		commands = append(commands, pod.Delete())
	}
	more := ""
	if n := len(r.Pods) - len(commands); n > 0 {
		more = fmt.Sprintf("; and %d more, which \"hsm-signer audit list --stuck\" lists", n)
	}
	return append(hints, fmt.Sprintf("Pods that run without the certificate that was issued to "+
		"them: %d. Delete them, so that they ask again: %s%s. docs/runbook.md: HSMSignerPodsStuck",
		len(r.Pods), strings.Join(commands, "; "), more))
}
