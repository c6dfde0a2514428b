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

// A mirror holds what the API server has of a selector, and tells of what is new and what has changed. It is what a
// [cache.Reflector] writes to; client-go's informers would do, but wait for up to a minute when the API server has been away
// for a while, and their wait cannot be set.
type mirror struct {
	cache.Store
	slim    cache.TransformFunc
	added   func(object any)
	updated func(before, after any)
	deleted func(object any)
	synced  atomic.Bool
}

// watchBackoff is the wait between two tries to list or watch: 12 seconds at most.
func watchBackoff() *wait.Backoff {
	return &wait.Backoff{Duration: firstRetry, Factor: 2, Jitter: 0.5, Steps: 10, Cap: lastRetry}
}

// newMirror returns a mirror, and the reflector that keeps it while it runs.
func (c *Controller) newMirror(lw cache.ListerWatcher) (*mirror, *cache.Reflector) {
	m := &mirror{Store: cache.NewStore(cache.MetaNamespaceKeyFunc), slim: c.slim, added: c.added, updated: c.updated, deleted: c.deleted}
	return m, cache.NewReflectorWithOptions(lw, &certificatesv1.CertificateSigningRequest{}, m, cache.ReflectorOptions{Backoff: watchBackoff()})
}

// Synced tells whether the mirror has once been whole.
func (m *mirror) Synced() bool { return m.synced.Load() }

// Add takes an object.
func (m *mirror) Add(object any) error { return m.put(object) }

// Update takes an object that has changed.
func (m *mirror) Update(object any) error { return m.put(object) }

// Delete lets go of an object, by the name that it is kept under.
func (m *mirror) Delete(object any) error {
	object, err := m.slim(object)
	if err != nil {
		return err
	}
	if former, was, err := m.Get(object); err == nil && was {
		m.deleted(former)
	}
	return m.Store.Delete(object)
}

func (m *mirror) put(object any) error {
	object, err := m.slim(object)
	if err != nil {
		return err
	}
	before, was, err := m.Get(object)
	if err != nil {
		return fmt.Errorf("request in the mirror: %w", err)
	}
	if err := m.Store.Update(object); err != nil {
		return fmt.Errorf("request in the mirror: %w", err)
	}
	m.tell(before, was, object)
	return nil
}

// Replace takes all objects that there are.
func (m *mirror) Replace(objects []any, version string) error {
	former := make(map[string]any, len(objects))
	for _, object := range m.List() {
		if key, err := cache.MetaNamespaceKeyFunc(object); err == nil {
			former[key] = object
		}
	}
	for i := range objects {
		var err error
		if objects[i], err = m.slim(objects[i]); err != nil {
			return err
		}
	}
	if err := m.Store.Replace(objects, version); err != nil {
		return fmt.Errorf("requests in the mirror: %w", err)
	}
	m.synced.Store(true)
	for _, object := range objects {
		key, err := cache.MetaNamespaceKeyFunc(object)
		if err != nil {
			return fmt.Errorf("requests in the mirror: %w", err)
		}
		before, was := former[key]
		delete(former, key)
		m.tell(before, was, object)
	}
	for _, key := range slices.Sorted(maps.Keys(former)) {
		m.deleted(former[key])
	}
	return nil
}

func (m *mirror) tell(before any, was bool, after any) {
	if was {
		m.updated(before, after)
		return
	}
	m.added(after)
}

// Transformer has the reflector make each object slim as soon as it has it.
func (m *mirror) Transformer() cache.TransformFunc { return m.slim }
