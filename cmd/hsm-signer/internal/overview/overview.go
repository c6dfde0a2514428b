// Package overview gathers what the status page of a CA shows.
//
// Duty: put into words what the parts of a process know: their health, the leader, the open
// requests, the latest decisions, and the pods that will outlive their certificates; and hint at
// what to do.
//
// Contract: only what is known already is shown, so a page costs nothing. Its form is the duty of
// package status.
package overview

import (
	"fmt"
	"math"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/fingerprint"
	"hsm-signer/cmd/hsm-signer/internal/health"
	"hsm-signer/cmd/hsm-signer/internal/status"
	"hsm-signer/cmd/hsm-signer/internal/stuck"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/kube/pace"
)

// caWarning is how long before the CA's end the page warns of it, as the alert does.
const caWarning = 90 * 24 * time.Hour

// A Controller is a controller as the page shows it.
type Controller interface {
	Leads() bool
	Leader() string // who leads, of many
	Open() kube.Open
	Pace() pace.State
	CleanUpFault() error // why finished requests cannot be deleted
}

// Signing is what the page shows only of a process that signs.
type Signing struct {
	Keys   interface{ Stats() hsm.Stats }
	Issuer interface{ CA() *issuer.CA }
	Expiry interface{ Report() expiry.Report }
	Stuck  interface{ Report() stuck.Report }
	Phase  interface{ Facts() []string } // of a rotation of the CA
}

// An Overview gathers what the page shows. Its fields must not change once it is in use; then it is
// safe for concurrent use.
type Overview struct {
	Config     *config.Config
	Identity   string    // its own among many; empty without an election
	Started    time.Time // when the process started
	Health     *health.Health
	Activity   *Activity
	Controller Controller
	Signing    *Signing // nil in a shadow
}

// Page is how things stand now.
func (o *Overview) Page() status.Page {
	now := time.Now()
	recent, issued := o.Activity.last(now)
	open := o.Controller.Open()
	p := status.Page{
		Now: now, Started: o.Started, Version: "hsm-signer " + buildinfo.Version(),
		Signers: o.Config.SignerNames, Mode: string(o.Config.Mode), Parts: o.shownParts(),
		Leads: o.Controller.Leads(), Leader: o.Controller.Leader(), Identity: o.Identity,
		Open: shownOpen(open), Pace: paceInWords(o.Controller.Pace()),
		Policy: o.Config.PolicyFile + ", " + o.Health.Policy.State(), Issued: issued,
	}
	for _, outcome := range recent {
		p.Decisions = append(p.Decisions, decisionOf(outcome))
	}
	o.addRemarks(&p)
	if n := o.Activity.unexpected(); n > 0 {
		p.Hints = append(p.Hints, fmt.Sprintf("Certificates on requests of our signers that "+
			"hsm-signer did not make: %d. docs/runbook.md: HSMSignerForeignCertificate", n))
	}
	p.Hints = append(p.Hints, o.cleanUpHints()...)
	p.Hints = append(p.Hints, heldHints(open)...)
	o.addCredential(&p)
	if o.Signing != nil {
		o.addSigning(&p)
	}
	return p
}

// addRemarks adds what is at fault without making the process unready, with its time.
func (o *Overview) addRemarks(p *status.Page) {
	names := map[string]string{
		"policy_file":  "The policy file is refused, and the policy before it stays in force",
		"ca_file":      "CA_CERT_FILE is refused, and the certificate before it stays in use",
		"next_ca_file": "NEXT_CA_CERT_FILE is refused, and the certificate before it stays in use",
		"other_ca":     "The key of the CA that does not sign now cannot sign",
		"trust_bundle_file": "TRUST_BUNDLE_FILE is refused, and the trust anchors before it stay " +
			"published",
		"trust_bundle": "The trust anchors are not published. docs/runbook.md: " +
			"HSMSignerTrustBundle",
		"kubeconfig": "The changed kubeconfig is refused, and the credential before it stays in " +
			"use",
	}
	for _, remark := range o.Health.Remarks() {
		name, named := names[remark.Name]
		switch {
		case remark.Err == nil:
		case named:
			p.Hints = append(p.Hints, fmt.Sprintf("%s: %v (since %s)", name, remark.Err,
				remark.Since.UTC().Format(time.RFC3339)))
		case remark.Name == "lease":
			p.LostSince = remark.Since
		}
	}
	if p.Open != nil && p.Open.Unanswered > overdue {
		p.Hints = append(p.Hints, fmt.Sprintf("Requests are waiting, and none has been answered "+
			"for %s. docs/runbook.md: HSMSignerUnanswered",
			p.Open.Unanswered.Round(time.Second)))
	}
}

// overdue is how long requests are without an answer when the page warns of it, as the alert does.
const overdue = 15 * time.Second

// shownOpen are the open requests, or nil where they are not known.
func shownOpen(o kube.Open) *status.Open {
	if !o.Known {
		return nil
	}
	shown := &status.Open{Oldest: o.Oldest, LastAnswer: o.LastAnswer, Unanswered: o.Unanswered}
	for _, state := range kube.OpenStates {
		if n := o.States[state]; n > 0 {
			shown.States = append(shown.States, status.OpenState{Name: health.StateName(state),
				Count: n, Bad: state == kube.OpenFailing || state == kube.OpenRefusalHeld})
		}
	}
	return shown
}

// addSigning adds what only those who sign have.
func (o *Overview) addSigning(p *status.Page) {
	cert := o.Signing.Issuer.CA().Certificate()
	p.CA = &status.CA{Subject: cert.Subject.String(), NotAfter: cert.NotAfter,
		SHA256: fingerprint.Of(cert.Raw)}
	p.Rotation = o.Signing.Phase.Facts()
	p.Token = o.Config.Token.Token.String() + ", " + o.Config.Token.Key.String()
	p.Sessions = sessionsOf(o.Signing.Keys.Stats().Sessions)
	if left := cert.NotAfter.Sub(p.Now); left > 0 && left < caWarning {
		p.Hints = append(p.Hints, fmt.Sprintf("The CA ends in %d days, and no certificate "+
			"outlives it. Make the next one now: docs/ceremony.md", int(left.Hours()/24)))
	}
	if o.Config.Token.AllowExtractable {
		p.Hints = append(p.Hints, "ALLOW_EXTRACTABLE_KEY is set: the CA's key may be one that "+
			"can leave its token. For trials only.")
	}
	p.Hints = append(p.Hints, stuckHints(o.Signing.Stuck.Report())...)
	report := o.Signing.Expiry.Report()
	p.Ending = endingOf(report.Pods, p.Now)
	if report.Fault != nil {
		p.Unknown = report.Fault.Error()
	}
}

// sessionsOf says in words which sessions there are.
func sessionsOf(s hsm.Sessions) string {
	if s.Open == 0 {
		return "not connected"
	}
	return fmt.Sprintf("%d PKCS#11 sessions open; %d of at most %d sign", s.Open, s.InUse, s.Most)
}

// shownNames are what the parts are called on the page, with what to do when one is not well.
var shownNames = map[string][2]string{
	"requests": {"API server", "Is the API server there, and may hsm-signer watch? " +
		"hsm-signer check names what is missing. docs/runbook.md: HSMSignerNotReady"},
	"permissions": {"Permissions", "hsm-signer check names what is missing; apply again what " +
		"you installed (kubectl apply -k your overlay). docs/runbook.md: HSMSignerNotReady"},
	"credential": {"Credential", "Renew it: docs/credentials.md. docs/runbook.md: " +
		"HSMSignerCredentialExpiring"},
	"token": {"HSM", "hsm-signer check goes through module, token, PIN and key. " +
		"docs/runbook.md: HSMSignerTokenUnavailable"},
	"ca": {"CA", "Its certificate is outside its dates. docs/runbook.md: " +
		"HSMSignerCAExpiring"},
	"journal": {"Journal", "Look at the disk that holds STATE_DIR. docs/runbook.md: " +
		"HSMSignerJournalNotWritable, or HSMSignerJournalRolledBack if it was rolled back"},
	"rotation": {"Rotation", "The phase of the CA's rotation is not clear: hsm-signer ca rotate " +
		"status, and docs/rotation.md"},
	"clock": {"Clock", "Pod certificates are not signed. Compare the clocks of this host and of " +
		"the API server (chronyc tracking). docs/runbook.md: HSMSignerNotReady"},
}

func (o *Overview) shownParts() []status.Part {
	var shown []status.Part
	for _, p := range o.Health.Parts() {
		texts, known := shownNames[p.Name]
		part := status.Part{Name: p.Name, Note: p.Note, Since: p.Since}
		if known {
			part.Name = texts[0]
		}
		if p.Err != nil {
			part.Fault, part.Do = p.Err.Error(), texts[1]
		}
		shown = append(shown, part)
	}
	return shown
}

func decisionOf(o kube.Outcome) status.Decision {
	d := status.Decision{
		At: o.At, Result: string(o.Result), Request: o.Name, Requester: o.Requester, Rule: o.Rule,
		Reason: o.Reason,
		Good:   o.Result == kube.ResultIssued || o.Result == kube.ResultWouldIssue,
	}
	if o.Result == kube.ResultIssued {
		d.Took = o.Age
	}
	return d
}

// paceInWords describes the pace of answers for the status page.
func paceInWords(s pace.State) string {
	rate := "at once"
	switch {
	case s.Rate == 0:
		rate = "none for the moment"
	case !math.IsInf(s.Rate, 1):
		rate = fmt.Sprintf("%.0f a second", math.Ceil(s.Rate))
	}
	if s.Waiting > 0 {
		rate += fmt.Sprintf(", %d held back", s.Waiting)
	}
	return fmt.Sprintf("%s (%s)", rate, s.Reason)
}
