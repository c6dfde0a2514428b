package kube

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"hsm-signer/kube/pace"
)

// ManyRequests is the number of requests in a cluster, of all signers, above which each of Calico's
// init containers needs too long to read them: 30 of its 90 seconds, see [ReadingTime].
const ManyRequests = 2000

// ReadingTime is how long an init container of Calico's needs to read so many requests. Its watch
// starts with all that exist, and with 10m of CPU each takes it up to 15 ms.
func ReadingTime(requests int) time.Duration {
	return time.Duration(requests) * pace.PerEvent
}

const (
	countInterval = time.Minute      // between two counts
	countTimeout  = 10 * time.Second // of one
	// leadInterval is the time between two looks whether this controller has come to lead.
	leadInterval = 2 * time.Second
)

// countRequests counts the requests in the cluster until the context ends, while this controller
// leads.
func (c *Controller) countRequests(ctx context.Context) {
	var counted time.Time // zero: the number is not known
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if c.ledByAnother() {
			c.open.others()
		}
		if c.election.Fence() != nil {
			counted = time.Time{}
			c.sinks.Report(RequestCount{})
			return
		}
		if counted.IsZero() || time.Since(counted) >= countInterval {
			counted = time.Now()
			c.countOnce(ctx)
		}
	}, leadInterval)
}

func (c *Controller) countOnce(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	n, err := c.requests.Load().Count(limited)
	if err != nil && ctx.Err() == nil {
		c.Logger.Warn("the number of requests in the cluster is not known", "error", err)
	}
	c.sinks.Report(RequestCount{Requests: n, Known: err == nil})
}
