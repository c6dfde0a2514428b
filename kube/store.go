package kube

import (
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"
)

// A store holds what the API server has of a selector, and tells what is new and what has changed.
// It is what a [cache.Reflector] writes to; client-go's informers would do, but wait for up to a
// minute after the API server has been away for a while, and their wait cannot be set.
type store struct {
	cache.Store
	trim    cache.TransformFunc
	added   func(object any)
	updated func(before, after any)
	deleted func(object any)
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
		trim:  c.trim, added: c.added, updated: c.updated, deleted: c.deleted,
	}
	options := cache.ReflectorOptions{Backoff: watchBackoff()}
	return s, cache.NewReflectorWithOptions(lw, &certificatesv1.CertificateSigningRequest{}, s, options)
}

// Synced reports whether the store was complete once.
func (s *store) Synced() bool { return s.synced.Load() }

// Add takes an object.
func (s *store) Add(object any) error { return s.put(object) }

// Update takes an object that has changed.
func (s *store) Update(object any) error { return s.put(object) }

// Delete drops an object, by the name that it is kept under.
func (s *store) Delete(object any) error {
	object, err := s.trim(object)
	if err != nil {
		return err
	}
	if former, was, err := s.Get(object); err == nil && was {
		s.deleted(former)
	}
	return s.Store.Delete(object)
}

func (s *store) put(object any) error {
	object, err := s.trim(object)
	if err != nil {
		return err
	}
	before, was, err := s.Get(object)
	if err != nil {
		return fmt.Errorf("request in the store: %w", err)
	}
	if err := s.Store.Update(object); err != nil {
		return fmt.Errorf("request in the store: %w", err)
	}
	s.tell(before, was, object)
	return nil
}

// Replace takes all objects that there are.
func (s *store) Replace(objects []any, version string) error {
	former := make(map[string]any, len(objects))
	for _, object := range s.List() {
		if key, err := cache.MetaNamespaceKeyFunc(object); err == nil {
			former[key] = object
		}
	}
	for i := range objects {
		var err error
		if objects[i], err = s.trim(objects[i]); err != nil {
			return err
		}
	}
	if err := s.Store.Replace(objects, version); err != nil {
		return fmt.Errorf("requests in the store: %w", err)
	}
	s.synced.Store(true)
	for _, object := range objects {
		key, err := cache.MetaNamespaceKeyFunc(object)
		if err != nil {
			return fmt.Errorf("requests in the store: %w", err)
		}
		before, was := former[key]
		delete(former, key)
		s.tell(before, was, object)
	}
	for _, key := range slices.Sorted(maps.Keys(former)) {
		s.deleted(former[key])
	}
	return nil
}

func (s *store) tell(before any, was bool, after any) {
	if was {
		s.updated(before, after)
		return
	}
	s.added(after)
}

// Transformer has the reflector trim each object as soon as it has it.
func (s *store) Transformer() cache.TransformFunc { return s.trim }
