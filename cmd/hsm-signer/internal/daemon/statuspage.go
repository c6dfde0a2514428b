package daemon

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/fingerprint"
	"hsm-signer/cmd/hsm-signer/internal/status"
	"hsm-signer/cmd/hsm-signer/internal/stuck"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/hsm"
	"hsm-signer/kube"
	"hsm-signer/kube/pace"
)

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

// caWarning is how long before the CA's end the page warns of it, as the alert does.
const caWarning = 90 * 24 * time.Hour

// A statusPage gathers what the status page shows.
type statusPage struct {
	config     *config.Config
	identity   string // its own among many; empty without an election
	health     *health
	activity   *activity
	controller shownController
	signing    *shownSigning // nil in a shadow
	started    time.Time
}

// A shownController is a controller as the page shows it.
type shownController interface {
	Leads() bool
	Leader() string // who leads, of many
	Open() kube.Open
	Pace() pace.State
	CleanUpFault() error // why finished requests cannot be deleted
}

// shownSigning is what the page shows only of a process that signs.
type shownSigning struct {
	key    interface{ Stats() hsm.Stats }
	ca     caHolder
	expiry interface{ Report() expiry.Report }
	stuck  interface{ Report() stuck.Report }
	phase  interface{ Facts() []string }
}

// newStatusPage returns the page of a process that started now.
func newStatusPage(s *config.Service, h *health, recent *activity, c shownController,
	signs *signing) *statusPage {
	page := &statusPage{config: s.Config, health: h, activity: recent, controller: c,
		started: time.Now()}
	if s.Lease != nil {
		page.identity = s.Lease.Identity
	}
	if signs != nil {
		page.signing = &shownSigning{signs.keys, signs.issuer, signs.expiry, signs.stuck,
			signs.rotator}
	}
	return page
}

// page is how things stand now. Nobody is asked, so that who looks costs nothing.
func (s *statusPage) page() status.Page {
	now := time.Now()
	recent, issued := s.activity.last(now)
	open := s.controller.Open()
	p := status.Page{
		Now: now, Started: s.started, Version: "hsm-signer " + buildinfo.Version(),
		Signers: s.config.SignerNames, Mode: string(s.config.Mode), Parts: s.shownParts(),
		Leads: s.controller.Leads(), Leader: s.controller.Leader(), Identity: s.identity,
		Open: shownOpen(open), Pace: paceInWords(s.controller.Pace()),
		Policy: s.config.PolicyFile + ", " + s.health.policy.State(), Issued: issued,
	}
	for _, outcome := range recent {
		p.Decisions = append(p.Decisions, decisionOf(outcome))
	}
	s.addRemarks(&p)
	if n := s.activity.unexpected(); n > 0 {
		p.Hints = append(p.Hints, fmt.Sprintf("Certificates on requests of our signers that "+
			"hsm-signer did not make: %d. docs/runbook.md: HSMSignerForeignCertificate", n))
	}
	p.Hints = append(p.Hints, s.cleanUpHints()...)
	p.Hints = append(p.Hints, heldHints(open)...)
	s.addCredential(&p)
	if s.signing != nil {
		s.addSigning(&p)
	}
	return p
}

// addRemarks adds what is at fault without making the process unready, with its time.
func (s *statusPage) addRemarks(p *status.Page) {
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
	for _, remark := range s.health.remarks() {
		name, named := names[remark.name]
		switch {
		case remark.err == nil:
		case named:
			p.Hints = append(p.Hints, fmt.Sprintf("%s: %v (since %s)", name, remark.err,
				remark.since.UTC().Format(time.RFC3339)))
		case remark.name == "lease":
			p.LostSince = remark.since
		}
	}
	if p.Open != nil && p.Open.Unanswered > overdue {
		p.Hints = append(p.Hints, fmt.Sprintf("Requests are waiting, and none has been answered "+
			"for %s. docs/runbook.md: HSMSignerUnanswered",
			p.Open.Unanswered.Round(time.Second)))
	}
}

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
			shown.States = append(shown.States, status.OpenState{Name: stateNames[state],
				Count: n, Bad: state == kube.OpenFailing || state == kube.OpenRefusalHeld})
		}
	}
	return shown
}

// addSigning adds what only those who sign have.
func (s *statusPage) addSigning(p *status.Page) {
	cert := s.signing.ca.CA().Certificate()
	p.CA = &status.CA{Subject: cert.Subject.String(), NotAfter: cert.NotAfter,
		SHA256: fingerprint.Of(cert.Raw)}
	p.Rotation = s.signing.phase.Facts()
	p.Token = s.config.Token.Token.String() + ", " + s.config.Token.Key.String()
	p.Sessions = sessionsOf(s.signing.key.Stats().Sessions)
	if left := cert.NotAfter.Sub(p.Now); left > 0 && left < caWarning {
		p.Hints = append(p.Hints, fmt.Sprintf("The CA ends in %d days, and no certificate "+
			"outlives it. Make the next one now: docs/ceremony.md", int(left.Hours()/24)))
	}
	if s.config.Token.AllowExtractable {
		p.Hints = append(p.Hints, "ALLOW_EXTRACTABLE_KEY is set: the CA's key may be one that "+
			"can leave its token. For trials only.")
	}
	p.Hints = append(p.Hints, stuckHints(s.signing.stuck.Report())...)
	report := s.signing.expiry.Report()
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

func (s *statusPage) shownParts() []status.Part {
	var shown []status.Part
	for _, p := range s.health.parts() {
		texts, known := shownNames[p.name]
		part := status.Part{Name: p.name, Note: p.note, Since: p.since}
		if known {
			part.Name = texts[0]
		}
		if p.err != nil {
			part.Fault, part.Do = p.err.Error(), texts[1]
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

// endingOf puts the pods of one workload together, the earliest first.
func endingOf(pods []expiry.Endangered, now time.Time) []status.Ending {
	byCommand := map[string]int{}
	var all []status.Ending
	for _, e := range pods {
		restart := e.Pod.Restart()
		i, known := byCommand[restart]
		if !known {
			i = len(all)
			byCommand[restart] = i
			all = append(all,
				status.Ending{Workload: ownerOf(e.Pod), First: e.NotAfter, Restart: restart})
		}
		if name := e.Pod.Namespace + "/" + e.Pod.Name; !slices.Contains(all[i].Pods, name) {
			all[i].Pods = append(all[i].Pods, name)
			if e.Ended(now) { // its first certificate to end comes first
				all[i].Dark++
			}
		}
		all[i].First = earlier(all[i].First, e.NotAfter)
	}
	slices.SortStableFunc(all, func(a, b status.Ending) int {
		return cmp.Or(a.First.Compare(b.First), strings.Compare(a.Workload, b.Workload))
	})
	return all
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// ownerOf says in words what a pod is restarted by.
func ownerOf(pod kube.LivePod) string {
	if pod.Owner.Kind == "" {
		return "nothing makes it again"
	}
	return pod.Owner.Kind + " " + pod.Owner.Namespace + "/" + pod.Owner.Name
}
