package testenv

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// attachTimeout limits the wait for an API server that another program starts.
const attachTimeout = 3 * time.Minute

// Attach waits for the API server at the URL, which another program runs with the secrets in dir
// and with --cert-dir=dir/certs. The caller may only use methods of the Cluster that call the API.
func Attach(ctx context.Context, dir, url string) (*Cluster, error) {
	c := in(dir)
	c.url = url
	var last error
	err := wait.PollUntilContextTimeout(ctx, readyPoll, attachTimeout, true,
		func(ctx context.Context) (bool, error) {
			last = c.ready(ctx)
			return last == nil, nil
		})
	if err != nil {
		return nil, fmt.Errorf("the API server at %s with the secrets in %s is not ready: %w", url,
			dir, last)
	}
	return c, nil
}
