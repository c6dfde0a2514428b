//go:build cgo

package hsm

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// A lock is for many readers or one writer. Nobody waits for it longer than their context. A writer
// that waits lets no more readers in.
type lock struct{ slots *semaphore.Weighted }

// everySlot is more than there are readers: a writer takes all slots, a reader takes one.
const everySlot = 1 << 30

func newLock() lock { return lock{semaphore.NewWeighted(everySlot)} }

func (l lock) rLock(ctx context.Context) error { return l.acquire(ctx, 1) }

func (l lock) rUnlock() { l.slots.Release(1) }

func (l lock) lock(ctx context.Context) error { return l.acquire(ctx, everySlot) }

func (l lock) unlock() { l.slots.Release(everySlot) }

// acquire returns the cause why the context ended, if it did.
func (l lock) acquire(ctx context.Context, n int64) error {
	if l.slots.Acquire(ctx, n) != nil {
		return context.Cause(ctx)
	}
	return nil
}
