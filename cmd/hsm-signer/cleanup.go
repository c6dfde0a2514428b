package main

import (
	"context"
	"fmt"
	"time"

	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
)

// leastDeleteAfter is the least of DELETE_FINISHED_AFTER: Calico's init container waits so long for
// its certificate.
const leastDeleteAfter = 90 * time.Second

// checkCleanUp adds a fault if finished requests are to be deleted by a shadow.
func (c *config) checkCleanUp(faults *configFaults) {
	if c.deleteFinishedAfter > 0 && c.mode == kube.Shadow && !faults.has("APPROVE") {
		faults.addf("DELETE_FINISHED_AFTER",
			"is set, and APPROVE is shadow, which writes nothing to the cluster: unset one of them")
	}
}

// permissions lists what "run" needs.
func (c *config) permissions(p *parts) []kube.Permission {
	all := kube.Permissions(c.signerNames, c.mode, p.lease, podNamespaces(p.policy))
	if c.deleteFinishedAfter > 0 {
		all = append(all, kube.CleanUpPermission())
	}
	return all
}

// answers knows which answers to requests are on the disk.
type answers struct {
	issuer  *issuer.Issuer
	journal *keptJournal
}

// Delivered reports whether the journal has the certificate as published.
func (a answers) Delivered(uid string, chain []byte) (bool, error) {
	return a.issuer.Delivered(uid, chain)
}

// Refused returns those of the requests that are in the refusal log, and for which the journal has
// no certificate and expects none.
func (a answers) Refused(uids []string) (map[string]bool, error) {
	refused, err := journal.Logged(a.journal.dir, journal.RefusalsLog, uids)
	if err != nil {
		return nil, err
	}
	for uid := range refused {
		if refused[uid], err = a.issuer.NeverIssued(uid); err != nil {
			return nil, err
		}
	}
	return refused, nil
}

// crowdedText says what so many requests in the cluster cost each client, and what to do about it.
// It is empty if there are not too many.
func crowdedText(requests int) string {
	if requests <= kube.ManyRequests {
		return ""
	}
	seconds := int(kube.ReadingTime(requests).Seconds())
	return fmt.Sprintf("%d certificate requests, of all signers, are in the cluster. "+
		"Each of Calico's init containers reads all of them first, which may take %d of its 90 seconds: "+
		"set DELETE_FINISHED_AFTER, or delete finished requests of other signers. "+
		"docs/runbook.md: HSMSignerManyRequests", requests, min(seconds, 90))
}

// checkRequests counts the requests in the cluster.
func checkRequests(ctx context.Context, p *parts, report reporter) {
	const name = "requests in the cluster"
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	n, err := kube.CountRequests(ctx, p.client)
	switch crowded := crowdedText(n); {
	case err != nil:
		detail := fmt.Sprintf("not known, and thousands would slow clients down: %v", err)
		report(name, detail, errUnread)
	case crowded != "":
		report(name, crowded, errWarning)
	default:
		report(name, fmt.Sprintf("%d, of all signers", n), nil)
	}
}

// Requests tells both how many requests the cluster has.
func (o observers) Requests(n int, known bool) {
	o.metrics.Requests(n, known)
	o.activity.Requests(n, known)
}

// Requests notes how many requests the cluster has; 0 if that is not known.
func (a *activity) Requests(n int, known bool) {
	if !known {
		n = 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = n
}

// requestCount is the number of requests in the cluster; 0 if it is not known.
func (a *activity) requestCount() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests
}

// cleanUpHints are what the status page says of finished requests.
func (s *statusPage) cleanUpHints() (hints []string) {
	if crowded := crowdedText(s.activity.requestCount()); crowded != "" {
		hints = append(hints, crowded)
	}
	if err := s.cleanUp(); err != nil {
		hints = append(hints, "Finished requests cannot be deleted, and are left to Kubernetes: "+err.Error())
	}
	return hints
}
