package config

import (
	"fmt"
	"time"

	"hsm-signer/kube"
)

// leastDeleteAfter is the least of DELETE_FINISHED_AFTER: Calico's init container waits so long for
// its certificate.
const leastDeleteAfter = 90 * time.Second

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
