package access

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	watchInterval = 15 * time.Second // between two looks
	// the same while one is missing: an API server that starts may refuse all for a moment
	watchRetry   = 3 * time.Second
	watchPause   = time.Second      // at least, also when something was forbidden just now
	watchTimeout = 10 * time.Second // of one look
)

// A Controller is whose permissions are watched.
type Controller interface {
	// Use returns what the controller does now.
	Use() Use
	// Unblocked is called when no permission is missing any more without which no request can be
	// answered.
	Unblocked()
}

// A Watch knows which permissions are missing. It asks for them from time to time, and as soon as
// the API server has forbidden something: so a permission that was taken away shows, whichever it
// is, and while it is missing nobody runs into it again and again. It is safe for concurrent use.
type Watch struct {
	reviewer   Reviewer
	controller Controller
	logger     hclog.Logger
	recheck    chan struct{} // of size 1: something was forbidden

	mu      sync.Mutex
	missing []Permission
}

// NewWatch returns a watch; [Watch.Run] starts it.
func NewWatch(reviewer Reviewer, controller Controller, logger hclog.Logger) *Watch {
	return &Watch{reviewer: reviewer, controller: controller, logger: logger,
		recheck: make(chan struct{}, 1)}
}

// Recheck has the permissions looked at if the error may come of a missing one.
func (w *Watch) Recheck(err error) {
	if err == nil || !apierrors.IsForbidden(err) {
		return
	}
	select {
	case w.recheck <- struct{}{}:
	default:
	}
}

// Blocked reports whether a permission is known to be missing without which no request can be
// answered.
func (w *Watch) Blocked() bool { return w.lacking(Permission.needed) != nil }

// Permitted returns nil while no permission is known to be missing that requests need; see also
// [Watch.MayDelete]. Without a permission for trust anchors, publishing them fails.
func (w *Watch) Permitted() error {
	return w.lacking(func(p Permission) bool { return !p.optional() })
}

// MayDelete returns nil while the permission to delete requests is not known to be missing.
func (w *Watch) MayDelete() error { return w.lacking(Permission.deletes) }

// lacking returns an error that names the missing permissions of that kind, or nil if there are
// none.
func (w *Watch) lacking(kind func(Permission) bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	var manifest string
	for _, missing := range w.missing {
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

// Run checks the permissions until the context ends.
func (w *Watch) Run(ctx context.Context) {
	for {
		w.Look(ctx)
		next, recheck := watchInterval, w.recheck
		if w.Permitted() != nil { // to run into what is known to be missing says nothing new
			next, recheck = watchRetry, nil
		}
		select { // a pause, whatever happens
		case <-ctx.Done():
			return
		case <-time.After(watchPause):
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		case <-recheck:
		}
	}
}

// Look asks for each permission. What the API server does not answer leaves things as they are.
func (w *Watch) Look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	var missing []Permission
	for _, permission := range w.controller.Use().Permissions() {
		lacking, err := permission.Missing(ctx, w.reviewer)
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				w.logger.Debug("the API server does not say what is permitted", "error", err)
			}
			return
		}
		// Where it is there in one namespace, another may lack it because it does not exist, as one
		// that a rule names for another release of Calico. A request from there meets the fault.
		if len(lacking) == 1 && lacking[0].attributes == permission.attributes {
			missing = append(missing, permission)
		}
	}
	w.note(missing)
}

// note keeps what is missing, logs each change, and tells the controller when nothing blocks it any
// more.
func (w *Watch) note(missing []Permission) {
	before, wasBlocked, mayDelete := w.Permitted(), w.Blocked(), w.MayDelete() == nil
	w.mu.Lock()
	w.missing = missing
	w.mu.Unlock()
	switch now := w.Permitted(); {
	case now != nil && (before == nil || before.Error() != now.Error()):
		w.logger.Error("permissions are missing; requests stay as they are", "error", now)
	case now == nil && before != nil:
		w.logger.Info("no permission is missing any more")
	}
	if err := w.MayDelete(); err != nil && mayDelete {
		w.logger.Error("finished requests are left to Kubernetes", "error", err)
	}
	if wasBlocked && !w.Blocked() {
		w.controller.Unblocked()
	}
}
