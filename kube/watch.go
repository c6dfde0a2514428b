package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/kube/request"
)

// requests is the API that the cluster has, and what is known of it.
type requests struct {
	request.API
	stores []cache.Store
	synced []cache.InformerSynced
}

// cached returns the request as it was last seen, or nil if it is gone or another has its name.
func (r *requests) cached(k key) request.Object {
	for _, store := range r.stores {
		object, found, err := store.GetByKey(k.name)
		if err != nil || !found {
			continue
		}
		if o, ok := object.(request.Object); ok && o.GetUID() == k.uid {
			return o
		}
	}
	return nil
}

// whole reports whether all requests were listed once.
func (r *requests) whole() bool {
	return !slices.ContainsFunc(r.synced, func(synced cache.InformerSynced) bool {
		return !synced()
	})
}

// all returns every request that is known.
func (r *requests) all() (all []request.Object) {
	for _, store := range r.stores {
		objects := store.List()
		all = slices.Grow(all, len(objects))
		for _, object := range objects {
			if o, is := object.(request.Object); is {
				all = append(all, o)
			}
		}
	}
	return all
}

// byUID returns every request that is known, by UID.
func (r *requests) byUID() map[types.UID]request.Object {
	all := r.all()
	byUID := make(map[types.UID]request.Object, len(all))
	for _, one := range all {
		byUID[one.GetUID()] = one
	}
	return byUID
}

// findAPI waits until the API server says which version of the API it has.
func (c *Controller) findAPI(ctx context.Context) (*requests, error) {
	backoff := wait.Backoff{Duration: firstRetry, Factor: 2, Jitter: 0.2, Steps: 8, Cap: lastRetry}
	delay := backoff.DelayFunc()
	for {
		api, err := c.Kind.Find(ctx)
		if err == nil {
			return &requests{API: api}, nil
		}
		c.watching("", fmt.Errorf("find the API of the requests: %w", err))
		c.Logger.Warn("the API server does not answer as it should; trying again", "error", err)
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("stopped before the API server was reached: %w", err)
		case <-time.After(delay()):
		}
	}
}

// rediscoverAfter is the wait before another version of the API is looked for. While a cluster is
// upgraded, some of its API servers have a version that others do not have any more.
const rediscoverAfter = time.Second

// keepWatching watches requests until the context ends. It calls started as soon as requests are
// known. When the API server stops serving the version of the API in use, as v1beta1 from
// Kubernetes 1.22 on, or begins to serve a kind that it lacked, the versions are looked for again.
func (c *Controller) keepWatching(ctx context.Context, api *requests, started func()) {
	for {
		c.Logger.Info("watching requests", "api", api.Version(), "signers",
			c.SignerNames)
		why := c.watchWhileServed(ctx, api, started)
		select {
		case <-ctx.Done():
			return
		case <-time.After(rediscoverAfter):
		}
		c.Logger.Warn("looking for the versions of the API again", "why", why, "api",
			api.Version())
		var err error
		if api, err = c.findAPI(ctx); err != nil {
			return // the context has ended
		}
	}
}

// Why the versions of the API are looked for again.
var (
	errVersionGone = errors.New("the API server no longer serves this version of the API")
	errNotMissing  = errors.New("the API server serves other kinds of requests than before")
)

// watchWhileServed watches requests until the context ends or the API server serves other versions
// of the API. It returns why it ends.
func (c *Controller) watchWhileServed(ctx context.Context, api *requests, started func()) error {
	ctx, look := context.WithCancelCause(ctx)
	var group wait.Group
	defer group.Wait()
	defer look(nil)
	c.watch(ctx, &group, api, look)
	started()
	<-ctx.Done()
	return context.Cause(ctx)
}

// missingKinds is the key in [Controller.watches] of the kinds whose API the cluster lacks. It is
// no field selector.
const missingKinds = "missing"

// missingInterval is the time between two questions whether the cluster has an API that it lacked.
const missingInterval = 10 * time.Second

// findMissing calls look as soon as the cluster has an API of those that it lacked.
func (c *Controller) findMissing(ctx context.Context, missing error, look func(why error)) {
	c.Logger.Error("the requests of a kind are not served; others are", "error", missing)
	err := wait.PollUntilContextCancel(ctx, missingInterval, false,
		func(ctx context.Context) (bool, error) {
			api, err := c.Kind.Find(ctx)
			if err != nil {
				return false, nil
			}
			now := request.Missing(api)
			return now == nil || now.Error() != missing.Error(), nil
		})
	if err == nil {
		look(errNotMissing)
	}
}

// watch starts a store for each selector. What the queue holds comes from them. It calls look when
// the API server serves other versions of the API.
func (c *Controller) watch(ctx context.Context, group *wait.Group, api *requests,
	look func(why error)) {
	selectors, missing := api.Selectors(), request.Missing(api.API)
	c.mu.Lock()
	c.watches = map[string]error{missingKinds: missing}
	for _, selector := range selectors {
		c.watches[selector] = errStarting
	}
	c.mu.Unlock()
	var reflectors []*cache.Reflector
	for _, selector := range selectors {
		store, reflector := c.newStore(listerWatcher(api, selector, func(err error) {
			c.watching(selector, err)
			if apierrors.IsNotFound(err) {
				look(errVersionGone)
			}
		}))
		api.stores = append(api.stores, store)
		api.synced = append(api.synced, store.Synced)
		reflectors = append(reflectors, reflector)
	}
	c.open.reset()
	c.known.Store(0)
	c.requests.Store(api) // before the first request is queued, which is looked up there
	for _, reflector := range reflectors {
		group.StartWithContext(ctx, reflector.RunWithContext)
	}
	if missing != nil {
		group.StartWithContext(ctx, func(ctx context.Context) {
			c.findMissing(ctx, missing, look)
		})
	}
}

// listerWatcher lists and watches what matches the field selector, and tells the observer how each
// attempt went; nil means that a watch was established. If a watch ends early, everything is listed
// again: etcd may have been restored from a backup meanwhile, and a watch from a version in its
// future shows nothing, and no error.
func listerWatcher(
	api request.API, selector string, observe func(error),
) cache.ListerWatcher {
	// ends is when the last watch is to end; nil: there was none since all was listed.
	var ends atomic.Pointer[time.Time]
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object,
			error) {
			o.FieldSelector = selector
			all, err := listPages(ctx, api, o)
			if err != nil {
				observe(err)
				return nil, err
			}
			ends.Store(nil)
			return all, nil
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface,
			error) {
			now := time.Now()
			if end := ends.Load(); end != nil && now.Before(*end) && o.ResourceVersion != "" {
				return nil, apierrors.NewResourceExpired(
					"the watch ended early: listing all again")
			}
			o.FieldSelector = selector
			w, err := api.Watch(ctx, o)
			observe(err)
			if o.TimeoutSeconds != nil {
				end := now.Add(time.Duration(*o.TimeoutSeconds) * time.Second)
				ends.Store(&end)
			}
			return w, err
		},
	}
	return apiListWatch{lw, api.ListsFirst()}
}

// apiListWatch tells client-go whether the API can give the initial state by a watch.
type apiListWatch struct {
	*cache.ListWatch
	listsFirst bool
}

// IsWatchListSemanticsUnSupported is client-go's name for an API that cannot.
func (l apiListWatch) IsWatchListSemanticsUnSupported() bool { return l.listsFirst }

// listPage is how many requests one answer to a list holds.
const listPage = 25

// listPages lists page by page, so that no more than one page is in memory as it came.
func listPages(
	ctx context.Context, api request.API, o metav1.ListOptions,
) (*metainternalversion.List, error) {
	// Without a version: a cache would return all at once.
	o.ResourceVersion, o.ResourceVersionMatch, o.Limit = "", "", listPage
	all := &metainternalversion.List{}
	for {
		page, err := api.List(ctx, o)
		if err != nil {
			return nil, err
		}
		all.Items = append(all.Items, page.Items...)
		all.ListMeta = page.ListMeta
		if o.Continue = page.Continue; o.Continue == "" {
			return all, nil
		}
	}
}
