package testenv

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// attachTimeout bounds how long an API server that someone else starts is waited for.
const attachTimeout = 3 * time.Minute

// MakeSecrets writes into dir what an API server is started with so that Attach knows its way in:
// tokens.csv with the admin's token (--token-auth-file), and service-account.key
// (--service-account-key-file, --service-account-signing-key-file). What is there stays.
func MakeSecrets(dir string) error { return makeSecrets(dir) }

// Attach waits for an API server that someone else runs, at that URL, with the secrets in dir and its
// --cert-dir in dir/certs. Of the Cluster only the methods that go through the API may be called.
func Attach(ctx context.Context, dir, url string) (*Cluster, error) {
	c := in(dir)
	c.url = url
	var last error
	err := wait.PollUntilContextTimeout(ctx, readyPoll, attachTimeout, true, func(ctx context.Context) (bool, error) {
		last = c.ready(ctx)
		return last == nil, nil
	})
	if err != nil {
		return nil, fmt.Errorf("the API server at %s with the secrets of %s does not get ready: %w", url, dir, last)
	}
	return c, nil
}
