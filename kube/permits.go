package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
)

const (
	permitInterval = 15 * time.Second // between two looks at the permissions
	permitRetry    = 3 * time.Second  // the same while one is missing: an API server that begins may refuse all for a moment
	permitPause    = time.Second      // at least, also when something was forbidden just now
	permitTimeout  = 10 * time.Second // of one look
)

// permits knows which permissions are missing. They are asked for now and then, and as soon as the API server
// has forbidden something: so a permission that was taken away shows, whichever it is, and while it is
// missing nobody runs into it again and again.
type permits struct {
	ask       askFunc
	suspected chan struct{} // of size 1: something was forbidden

	mu      sync.Mutex
	missing []Permission
}

func newPermits(client kubernetes.Interface) *permits {
	return &permits{
		ask:       func(ctx context.Context, p Permission) (bool, error) { return p.allowed(ctx, client) },
		suspected: make(chan struct{}, 1),
	}
}

// suspect takes note of an error that may come of a missing permission.
func (p *permits) suspect(err error) {
	if err == nil || !apierrors.IsForbidden(err) {
		return
	}
	select {
	case p.suspected <- struct{}{}:
	default:
	}
}

// idle tells whether a permission is missing without which no request can be served. Events are not needed for
// that, and without the lease there is nothing to do anyway.
func (p *permits) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, missing := range p.missing {
		if missing.attributes.Resource != "events" && missing.attributes.Resource != "leases" && !missing.optional() {
			return true
		}
	}
	return false
}

// mayCleanUp returns nil while the permission to delete requests is not known to be missing.
func (p *permits) mayCleanUp() error { return p.lacking(Permission.optional) }

// lacking returns an error that names the missing permissions of that kind, or nil if there are
// none.
func (p *permits) lacking(kind func(Permission) bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	var manifest string
	for _, missing := range p.missing {
		if kind(missing) {
			names, manifest = append(names, missing.String()), missing.Manifest()
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("may not %s: grant it to the service account, as %s does",
		strings.Join(names, "; "), manifest)
}

// Permitted returns nil while no permission is known to be missing that requests need; see also
// [Controller.CleanUpFault].
func (c *Controller) Permitted() error {
	return c.permits.lacking(func(p Permission) bool { return !p.optional() })
}

// permissions lists what this controller needs.
func (c *Controller) permissions() []Permission {
	all := Permissions(c.SignerNames, c.Mode, c.Lease, c.podNamespaces())
	if c.DeleteFinishedAfter > 0 {
		all = append(all, CleanUpPermission())
	}
	return all
}

// watchPermits looks at the permissions until the context ends.
func (c *Controller) watchPermits(ctx context.Context) {
	for {
		c.lookAtPermits(ctx)
		next, suspected := permitInterval, c.permits.suspected
		if c.Permitted() != nil { // who runs into what is known to be missing says nothing new
			next, suspected = permitRetry, nil
		}
		select { // a pause, whatever happens
		case <-ctx.Done():
			return
		case <-time.After(permitPause):
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		case <-suspected:
		}
	}
}

// lookAtPermits asks for each permission. What the API server does not answer leaves things as they are.
func (c *Controller) lookAtPermits(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, permitTimeout)
	defer cancel()
	var missing []Permission
	for _, permission := range c.permissions() {
		lacking, err := permission.missing(ctx, c.permits.ask)
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				c.Logger.Debug("the API server does not say what is permitted", "error", err)
			}
			return
		}
		// Where it is there in one namespace, another may lack it because it does not exist, as one that a
		// rule names for another release of Calico. A request from there meets the fault.
		if len(lacking) == 1 && lacking[0].attributes == permission.attributes {
			missing = append(missing, permission)
		}
	}
	c.notePermits(missing)
}

// podNamespaces are those in which pods are read; nil: in all.
func (c *Controller) podNamespaces() []string {
	if c.PodNamespaces == nil {
		return nil
	}
	return c.PodNamespaces()
}

// notePermits keeps what is missing, logs each change, and takes all requests up again when nothing is in their
// way any more.
func (c *Controller) notePermits(missing []Permission) {
	before, wasIdle, mayCleanUp := c.Permitted(), c.permits.idle(), c.permits.mayCleanUp() == nil
	c.permits.mu.Lock()
	c.permits.missing = missing
	c.permits.mu.Unlock()
	switch now := c.Permitted(); {
	case now != nil && (before == nil || before.Error() != now.Error()):
		c.Logger.Error("permissions are missing; requests stay as they are", "error", now)
	case now == nil && before != nil:
		c.Logger.Info("no permission is missing any more")
	}
	if err := c.permits.mayCleanUp(); err != nil && mayCleanUp {
		c.Logger.Error("finished requests are left to Kubernetes", "error", err)
	}
	if wasIdle && !c.permits.idle() {
		c.LookAgain()
	}
}
