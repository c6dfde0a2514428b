package soak

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/integration/must"
)

// A witness watches the requests of a batch. It records when each has its certificate, and counts
// the requests that get another one. A certificate that it misses while its watch restarts counts
// as late.
type witness struct {
	batch  *batch
	cancel context.CancelFunc
	group  wait.Group

	mu      sync.Mutex
	seen    map[types.UID]certified
	another int // certificates that replaced another
}

// certified is the first certificate of a request, and when the witness saw it.
type certified struct {
	at    time.Time
	chain []byte
}

func watchCertificates(t *testing.T, c *batch) *witness {
	t.Helper()
	w := &witness{batch: c, seen: map[types.UID]certified{}}
	informer := c.kind.informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: w.note, UpdateFunc: func(_, after any) { w.note(after) },
	})
	must.OK(t, err)
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(t.Context())
	w.group.StartWithContext(ctx, informer.RunWithContext)
	return w
}

func (w *witness) note(object any) {
	uid, now := object.(metav1.Object).GetUID(), w.batch.kind.answer(object)
	if len(now.chain) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch first, was := w.seen[uid]; {
	case !was:
		w.seen[uid] = certified{time.Now(), now.chain}
	case !bytes.Equal(first.chain, now.chain):
		w.another++
	}
}

// end ends the watch once it has seen a certificate of each request.
func (w *witness) end(t *testing.T) {
	t.Helper()
	must.Eventually(t, "the watch to show all certificates", func(context.Context) (bool, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for uid := range w.batch.asked {
			if _, is := w.seen[uid]; !is {
				return false, nil
			}
		}
		return true, nil
	})
	w.cancel()
	w.group.Wait()
}

// latencies returns the times from request to certificate, the shortest first.
func (w *witness) latencies() []time.Duration {
	var all []time.Duration
	for uid, made := range w.batch.asked {
		all = append(all, w.seen[uid].at.Sub(made.at))
	}
	slices.Sort(all)
	return all
}
