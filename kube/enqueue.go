package kube

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/kube/apifault"
	"hsm-signer/kube/request"
)

// A key names one request: names are used again, with other UIDs.
type key struct {
	name string
	uid  types.UID
}

func keyOf(r request.Object) key { return key{nameOf(r), r.GetUID()} }

// nameOf returns NAME, or NAMESPACE/NAME.
func nameOf(r request.Object) string { return cache.MetaObjectToName(r).String() }

// serves reports whether the request is to be answered.
func (c *Controller) serves(r request.Object) bool {
	return r.Ignored() == "" && c.Kind.Serves(r.Signer())
}

// added takes up a request that is new here.
func (c *Controller) added(r request.Object) {
	c.known.Add(1)
	if why := r.Ignored(); why != "" && c.Kind.Serves(r.Signer()) {
		c.Logger.Warn("a request is left alone", "request", nameOf(r), "uid", r.GetUID(), "signer",
			r.Signer(), "requester", r.Submission().Requester.Username, "why", why)
	}
	if c.Mode == Shadow && c.serves(r) {
		c.queue.Add(keyOf(r)) // once, wherever it stands
	}
	c.enqueue(r)
}

// updated takes up a request that has changed. One that was deleted and made again while nobody
// watched comes as a change too.
func (c *Controller) updated(before, after request.Object) {
	if before.GetUID() != after.GetUID() {
		c.deleted(before)
		c.added(after)
		return
	}
	c.enqueue(after)
}

// LookAgain takes up every request that is not yet done: the policy has changed.
func (c *Controller) LookAgain() {
	api := c.requests.Load()
	if api == nil {
		return
	}
	for _, r := range api.all() {
		c.enqueue(r)
	}
}

// enqueue takes up a request that is ours and not yet done.
func (c *Controller) enqueue(r request.Object) {
	if c.Mode == Shadow || !c.serves(r) {
		return
	}
	if !r.State().Open() {
		c.pacer.Gone(keyOf(r))
		c.open.closed(keyOf(r), true)
		return
	}
	c.open.seen(keyOf(r), c.openState(r), r.GetCreationTimestamp().Time)
	if r.GetNamespace() == "" { // no client of Calico's sees the others
		c.pacer.Asked(keyOf(r), clientOf(r), r.GetCreationTimestamp().Time, int(c.known.Load()))
	}
	c.queue.Add(keyOf(r))
}

// deleted forgets a request that is gone.
func (c *Controller) deleted(r request.Object) {
	c.known.Add(-1)
	c.pacer.Gone(keyOf(r))
	c.open.closed(keyOf(r), false)
}

// clientOf names whoever asks: the pod, where the token names one. Many requests of one pod are
// those of one client.
func clientOf(r request.Object) string {
	if _, uid, bound := r.Submission().Requester.BoundPod(); bound {
		return uid
	}
	return string(r.GetUID())
}

// fresh reads the request from the API server itself. It returns errLookAgain if it is gone or
// another has its name.
func fresh(ctx context.Context, r request.Object) (request.Object, error) {
	now, err := r.Read(ctx)
	switch {
	case err == nil:
		return now, nil
	case apierrors.IsNotFound(err) && !apifault.VersionGone(err):
		return nil, errLookAgain
	}
	return nil, fmt.Errorf("read the request again: %w", err)
}
