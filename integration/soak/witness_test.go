package soak

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/integration/must"
)

// A witness watches the requests of a crowd, and takes note of when each has its certificate, and of any that gets another
// one. When its watch is cut it goes on, and what it has missed counts as late.
type witness struct {
	crowd  *crowd
	cancel context.CancelFunc
	group  wait.Group

	mu      sync.Mutex
	seen    map[types.UID]certified
	another int // certificates that took the place of one
}

// certified is the certificate that a request had first, and when that was seen.
type certified struct {
	at    time.Time
	chain []byte
}

func watchCertificates(t *testing.T, c *crowd) *witness {
	t.Helper()
	w := &witness{crowd: c, seen: map[types.UID]certified{}}
	informer := informers.NewSharedInformerFactory(c.admin, 0).Certificates().V1().CertificateSigningRequests().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: w.note, UpdateFunc: func(_, after any) { w.note(after) }})
	must.OK(t, err)
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(t.Context())
	w.group.StartWithContext(ctx, informer.RunWithContext)
	return w
}

func (w *witness) note(object any) {
	csr, is := object.(*certificatesv1.CertificateSigningRequest)
	if !is || len(csr.Status.Certificate) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch first, was := w.seen[csr.UID]; {
	case !was:
		w.seen[csr.UID] = certified{time.Now(), csr.Status.Certificate}
	case !bytes.Equal(first.chain, csr.Status.Certificate):
		w.another++
	}
}

// end ends the watch when it has seen a certificate of each request.
func (w *witness) end(t *testing.T) {
	t.Helper()
	must.Eventually(t, "the watch to have told all", func(context.Context) (bool, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for uid := range w.crowd.asked {
			if _, is := w.seen[uid]; !is {
				return false, nil
			}
		}
		return true, nil
	})
	w.cancel()
	w.group.Wait()
}

// latencies are from the request to the certificate, the shortest first.
func (w *witness) latencies() []time.Duration {
	var all []time.Duration
	for uid, made := range w.crowd.asked {
		all = append(all, w.seen[uid].at.Sub(made.at))
	}
	slices.Sort(all)
	return all
}
