package hsm

import (
	"context"
	"sync"
)

// A gate is a lock for many readers or one writer, for which nobody waits longer than their context.
// A writer that waits lets no more readers in.
type gate struct {
	mu      sync.Mutex
	readers int
	writing bool
	waiting int           // writers
	opened  chan struct{} // closed and recreated when somebody leaves
}

func newGate() *gate { return &gate{opened: make(chan struct{})} }

// enter lets a reader in.
func (g *gate) enter(ctx context.Context) error {
	return g.wait(ctx, func() bool {
		if g.writing || g.waiting > 0 {
			return false
		}
		g.readers++
		return true
	})
}

// leave lets a reader out.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.readers--
	g.tell()
}

// lock waits until it is alone.
func (g *gate) lock(ctx context.Context) error {
	g.mu.Lock()
	g.waiting++
	g.mu.Unlock()
	err := g.wait(ctx, func() bool {
		if g.writing || g.readers > 0 {
			return false
		}
		g.writing = true
		return true
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting--
	g.tell()
	return err
}

// unlock lets the others in.
func (g *gate) unlock() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.writing = false
	g.tell()
}

// tell wakes everybody who waits. The caller holds the mutex.
func (g *gate) tell() {
	close(g.opened)
	g.opened = make(chan struct{})
}

// wait tries until it succeeds or the context ends.
func (g *gate) wait(ctx context.Context, try func() bool) error {
	for {
		g.mu.Lock()
		if try() {
			g.mu.Unlock()
			return nil
		}
		opened := g.opened
		g.mu.Unlock()
		select {
		case <-opened:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
