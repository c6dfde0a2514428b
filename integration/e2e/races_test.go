package e2e

import (
	"cmp"
	"context"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// Requests are deleted and created again with the same name and another key while hsm-signer works
// on the former one. Everything that it writes to a request belongs to that request.
func TestDeletedAndMadeAgainInMidTurn(t *testing.T) {
	const pods = 4
	times := timesEach(t)
	startReady(t, ca, withBudget(t, "{perPod: 1000}"))
	seen := watchRequests(t)
	var group sync.WaitGroup
	for range pods {
		p := newPod(t, node)
		group.Go(func() {
			for range times {
				asking := p.InitContainer(node)
				asking.Key = calico.NewP256Key()
				made, err := asking.Submit(t.Context(), p.Client) // replaces the former one
				if err != nil {
					t.Error(err)
					return
				}
				seen.made(made.UID, asking)
			}
			seen.finish(t, p.InitContainer(node).Name(), p)
		})
	}
	group.Wait()
	certificates, approvals := seen.end(t)
	t.Logf("%d times made again: %d certificates and %d approvals landed, each on its own request",
		pods*times, certificates, approvals)
	if approvals < pods || certificates < pods {
		t.Error("too few to have shown anything")
	}
}

// timesEach returns how often each pod creates its request again: often enough to hit every part of
// a sync, or as RACE_TIMES says.
func timesEach(t *testing.T) int {
	t.Helper()
	text := cmp.Or(os.Getenv("RACE_TIMES"), "50")
	times, err := strconv.Atoi(text)
	if err != nil || times < 1 {
		t.Fatalf("RACE_TIMES=%s is not a number of times", text)
	}
	return times
}

// A witness keeps every state of every request in the watch.
type witness struct {
	keys   sync.Map // of calico.InitContainer, by UID
	watch  watch.Interface
	ended  chan struct{}
	states []*certificatesv1.CertificateSigningRequest
	last   atomic.Pointer[string] // resourceVersion of the last state
}

func watchRequests(t *testing.T) *witness {
	t.Helper()
	watch := must.Get(shared.Cluster.Requests().Watch(t.Context(), metav1.ListOptions{}))(t)
	w := &witness{watch: watch, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		for event := range watch.ResultChan() {
			if csr, ok := event.Object.(*certificatesv1.CertificateSigningRequest); ok {
				w.states = append(w.states, csr)
				w.last.Store(&csr.ResourceVersion)
			}
		}
	}()
	t.Cleanup(watch.Stop)
	return w
}

func (w *witness) made(uid types.UID, asking calico.InitContainer) { w.keys.Store(uid, asking) }

// finish waits for the certificate of the last request with this name.
func (w *witness) finish(t *testing.T, name string, p testenv.Pod) {
	if _, err := calico.Wait(t.Context(), p.Client, name); err != nil {
		t.Error(err)
	}
}

// end checks every state, and returns how many requests had a certificate and how many had an
// approval.
func (w *witness) end(t *testing.T) (certificates, approvals int) {
	t.Helper()
	list := must.Get(shared.Cluster.Requests().List(t.Context(), metav1.ListOptions{}))(t)
	must.Eventually(t, "the watch to show all states", func(context.Context) (bool, error) {
		last := w.last.Load()
		return last != nil && !newer(list.Items, *last), nil
	})
	w.watch.Stop()
	<-w.ended
	certified, approved := map[types.UID]bool{}, map[types.UID]bool{}
	for _, csr := range w.states {
		asking, ours := w.keys.Load(csr.UID)
		if !ours {
			continue
		}
		if len(csr.Status.Certificate) > 0 {
			certified[csr.UID] = true
			requireIssued(t, csr, asking.(calico.InitContainer))
		}
		for _, c := range csr.Status.Conditions {
			approved[csr.UID] = true
			if c.Type != certificatesv1.CertificateApproved {
				t.Errorf("%s: %s: %s", csr.Name, c.Type, c.Message)
			}
		}
	}
	return len(certified), len(approved)
}

// newer reports whether any of the requests is newer than the last one in the watch.
func newer(requests []certificatesv1.CertificateSigningRequest, last string) bool {
	for i := range requests {
		if version := requests[i].ResourceVersion; len(version) > len(last) ||
			len(version) == len(last) && version > last {
			return true
		}
	}
	return false
}
