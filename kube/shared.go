package kube

import (
	"context"
	"sync"
)

// A shared makes one call to the API server for all callers that wait for the same object. Each
// gets the result of a call that began after it asked, which is as fresh as a call of its own. One
// call for a name is under way at most: a caller that asks meanwhile waits for the next one. The
// zero value is ready to use.
type shared[T any] struct {
	mu   sync.Mutex
	next map[string]*call[T] // by name: nil while only one is under way; absent if none is
}

type call[T any] struct {
	done  chan struct{} // closed when the rest is set
	value T
	err   error
}

// get returns what read returns for the name, or the context's error. The context of read is not
// canceled with that of one caller, since others may wait too, and ends after syncTimeout.
func (s *shared[T]) get(
	ctx context.Context, name string, read func(context.Context) (T, error),
) (T, error) {
	c := s.join(ctx, name, read)
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// join returns the call that begins next, and begins it if none is under way.
func (s *shared[T]) join(
	ctx context.Context, name string, read func(context.Context) (T, error),
) *call[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = map[string]*call[T]{}
	}
	next, underWay := s.next[name]
	if next == nil {
		next = &call[T]{done: make(chan struct{})}
		s.next[name] = next
	}
	if !underWay {
		go s.run(context.WithoutCancel(ctx), name, read)
	}
	return next
}

// run makes one call after the other until nobody waits for one.
func (s *shared[T]) run(
	ctx context.Context, name string, read func(context.Context) (T, error),
) {
	for c := s.begin(name); c != nil; c = s.begin(name) {
		ctx, cancel := context.WithTimeout(ctx, syncTimeout)
		c.value, c.err = read(ctx)
		cancel()
		close(c.done)
	}
}

// begin returns the call that somebody waits for, to be made now; nil if nobody does.
func (s *shared[T]) begin(name string) *call[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.next[name]
	if s.next[name] = nil; c == nil {
		delete(s.next, name)
	}
	return c
}
