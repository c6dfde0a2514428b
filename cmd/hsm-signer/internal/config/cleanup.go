package config

import (
	"fmt"
	"time"

	"hsm-signer/kube"
)

// leastDeleteAfter is the least of DELETE_FINISHED_AFTER: Calico's init container waits so long for
// its certificate.
const leastDeleteAfter = 90 * time.Second

// checkCleanUp adds a fault if finished requests are to be deleted by a shadow.
func (c *Config) checkCleanUp(faults *Faults) {
	if c.DeleteFinishedAfter > 0 && c.Mode == kube.Shadow && !faults.has("APPROVE") {
		faults.Addf("DELETE_FINISHED_AFTER",
			"is set, and APPROVE is shadow, which writes nothing to the cluster: unset one of them")
	}
}

// AdviseCleanUp says what so many requests in the cluster cost each client, and what to do about
// it. It is empty if there are not too many.
func AdviseCleanUp(requests int) string {
	if requests <= kube.ManyRequests {
		return ""
	}
	seconds := int(kube.ReadingTime(requests).Seconds())
	return fmt.Sprintf("%d certificate requests, of all signers, are in the cluster. Each of "+
		"Calico's init containers reads all of them first, which may take %d of its 90 seconds: "+
		"set DELETE_FINISHED_AFTER, or delete finished requests of other signers. "+
		"docs/runbook.md: HSMSignerManyRequests", requests, min(seconds, 90))
}
