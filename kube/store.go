package kube

import (
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/kube/request"
)

// A store holds what the API server has of a selector, and tells what is new and what has changed.
// It is what a [cache.Reflector] writes to; client-go's informers would do, but wait for up to a
// minute after the API server has been away for a while, and their wait cannot be set.
type store struct {
	cache.Store
	added   func(r request.Object)
	updated func(before, after request.Object)
	deleted func(r request.Object)
	synced  atomic.Bool
}

// watchBackoff is the wait between two tries to list or watch: 12 seconds at most.
func watchBackoff() *wait.Backoff {
	return &wait.Backoff{Duration: firstRetry, Factor: 2, Jitter: 0.5, Steps: 10, Cap: lastRetry}
}

// newStore returns a store, and the reflector that keeps it while it runs.
func (c *Controller) newStore(lw cache.ListerWatcher) (*store, *cache.Reflector) {
	s := &store{
		Store: cache.NewStore(cache.MetaNamespaceKeyFunc),
		added: c.added, updated: c.updated, deleted: c.deleted,
	}
	options := cache.ReflectorOptions{Backoff: watchBackoff()}
	return s, cache.NewReflectorWithOptions(lw, nil, s, options)
}

// Synced reports whether the store was complete once.
func (s *store) Synced() bool { return s.synced.Load() }

// Add takes an object.
func (s *store) Add(object any) error { return s.put(object) }

// Update takes an object that has changed.
func (s *store) Update(object any) error { return s.put(object) }

// Delete drops an object, by the name that it is kept under.
func (s *store) Delete(object any) error {
	if former, was, err := s.Get(object); err == nil && was {
		s.deleted(former.(request.Object))
	}
	return s.Store.Delete(object)
}

func (s *store) put(object any) error {
	r, err := requestIn(object)
	if err != nil {
		return err
	}
	before, was, err := s.Get(r)
	if err != nil {
		return fmt.Errorf("request in the store: %w", err)
	}
	if err := s.Store.Update(r); err != nil {
		return fmt.Errorf("request in the store: %w", err)
	}
	s.tell(before, was, r)
	return nil
}

// requestIn returns the request that the API returned.
func requestIn(object any) (request.Object, error) {
	if r, is := object.(request.Object); is {
		return r, nil
	}
	return nil, fmt.Errorf("the API returned %T instead of a request", object)
}

// Replace takes all objects that there are.
func (s *store) Replace(objects []any, version string) error {
	former := make(map[string]any, len(objects))
	for _, r := range s.List() {
		if key, err := cache.MetaNamespaceKeyFunc(r); err == nil {
			former[key] = r
		}
	}
	for _, object := range objects {
		if _, err := requestIn(object); err != nil {
			return err
		}
	}
	if err := s.Store.Replace(objects, version); err != nil {
		return fmt.Errorf("requests in the store: %w", err)
	}
	s.synced.Store(true)
	for _, object := range objects {
		r := object.(request.Object)
		before, was := former[nameOf(r)]
		delete(former, nameOf(r))
		s.tell(before, was, r)
	}
	for _, key := range slices.Sorted(maps.Keys(former)) {
		s.deleted(former[key].(request.Object))
	}
	return nil
}

func (s *store) tell(before any, was bool, after request.Object) {
	if was {
		s.updated(before.(request.Object), after)
		return
	}
	s.added(after)
}
