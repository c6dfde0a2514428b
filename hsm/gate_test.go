package hsm

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func TestGateKeepsWritersAlone(t *testing.T) {
	g := newGate()
	var readers, writers atomic.Int32
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			for range 200 {
				if i%4 == 0 {
					must(t, g.lock(t.Context()))
					if writers.Add(1) != 1 || readers.Load() != 0 {
						t.Error("a writer is not alone")
					}
					writers.Add(-1)
					g.unlock()
					continue
				}
				must(t, g.enter(t.Context()))
				if readers.Add(1); writers.Load() != 0 {
					t.Error("a reader beside a writer")
				}
				readers.Add(-1)
				g.leave()
			}
		})
	}
	group.Wait()
}

// Nobody waits longer than their context; and a writer that gave up does not keep readers out.
func TestGateIsNotWaitedForInVain(t *testing.T) {
	g := newGate()
	must(t, g.enter(t.Context()))
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.lock(over); !errors.Is(err, context.Canceled) {
		t.Errorf("a writer beside a reader: %v", err)
	}
	must(t, g.enter(t.Context()))
	g.leave()
	g.leave()
	must(t, g.lock(t.Context()))
	if err := g.enter(over); !errors.Is(err, context.Canceled) {
		t.Errorf("a reader beside a writer: %v", err)
	}
	g.unlock()
	must(t, g.enter(t.Context()))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
