package hsm

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"hsm-signer/internal/must"
)

func TestLockKeepsWritersAlone(t *testing.T) {
	l := newLock()
	var readers, writers atomic.Int32
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			for range 200 {
				if i%4 == 0 {
					must.OK(t, l.lock(t.Context()))
					if writers.Add(1) != 1 || readers.Load() != 0 {
						t.Error("a writer is not alone")
					}
					writers.Add(-1)
					l.unlock()
					continue
				}
				must.OK(t, l.rLock(t.Context()))
				if readers.Add(1); writers.Load() != 0 {
					t.Error("a reader beside a writer")
				}
				readers.Add(-1)
				l.rUnlock()
			}
		})
	}
	group.Wait()
}

// Nobody waits longer than their context; and a writer that gave up does not keep readers out.
func TestLockIsNotWaitedForLongerThanTheContext(t *testing.T) {
	l := newLock()
	must.OK(t, l.rLock(t.Context()))
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.lock(over); !errors.Is(err, context.Canceled) {
		t.Errorf("a writer beside a reader: %v", err)
	}
	must.OK(t, l.rLock(t.Context()))
	l.rUnlock()
	l.rUnlock()
	must.OK(t, l.lock(t.Context()))
	if err := l.rLock(over); !errors.Is(err, context.Canceled) {
		t.Errorf("a reader beside a writer: %v", err)
	}
	l.unlock()
	must.OK(t, l.rLock(t.Context()))
}
