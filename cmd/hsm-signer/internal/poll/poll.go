// Package poll has what the loops of a process share: they call a function at intervals, keep its
// latest result, and log an error only when it changes.
package poll

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Every calls f at once and then at each interval, until the context ends. It returns nil.
func Every(ctx context.Context, interval time.Duration, f func(context.Context)) error {
	return Repeat(ctx, nil, func(ctx context.Context) (time.Duration, error) {
		f(ctx)
		return interval, nil
	})
}

// Repeat calls f at once and then again and again, until the context ends or f returns an error,
// which Repeat returns. f also returns the time from the start of its call to the start of the
// next; if a call takes longer, the next follows at once. The first wait that is under way when
// wake is closed ends at once; wake may be nil.
func Repeat(ctx context.Context, wake <-chan struct{},
	f func(context.Context) (next time.Duration, err error)) error {
	for {
		started := time.Now()
		next, err := f(ctx)
		if err != nil {
			return err
		}
		timer := time.NewTimer(next - time.Since(started))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-wake:
			timer.Stop()
			wake = nil
		}
	}
}

// All runs the functions together. When one returns, the context of the others ends. All returns
// the first error.
func All(ctx context.Context, functions ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	for _, f := range functions {
		group.Go(func() { cancel(f(ctx)) })
	}
	group.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// A Latest keeps the latest result of a loop. The zero value keeps a zero result. It is safe for
// concurrent use.
type Latest[T any] struct {
	mu    sync.Mutex
	value T
}

// Load returns the latest result.
func (l *Latest[T]) Load() T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.value
}

// Swap keeps a result, and returns the one before.
func (l *Latest[T]) Swap(value T) (before T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before, l.value = l.value, value
	return before
}
