// Package fleet simulates the kubelets and the controller of many pods that request certificates.
//
// Use it to measure the outcome for clients that lose their watch:
//
//	f, err := fleet.New(ctx, env, component, 300)
//	f.Healer, err = env.Heal(ctx) // or without it, for comparison
//	report, err := f.Run(ctx, plan, 10*time.Minute)
//
// The kubelet: when a client has its certificate, the init container of its pod exits with 0 and
// the main container gets ready. When a client is lost, the init container exits with 0 as well,
// and the main container fails and waits in CrashLoopBackOff. The main container is not restarted:
// kubelet's back-off exceeds 60 seconds only after pauses of 10, 20 and 40 seconds, so a real pod
// counts as stuck about 70 seconds later than a pod of a Fleet. A pod that is being deleted is gone
// immediately.
//
// The controller: it replaces each deleted pod by a pod with another name and the same owner, whose
// client follows the same plan. Each pod has its own owner, as a pod of a DaemonSet is the only one
// on its node.
package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/load"
	"hsm-signer/integration/testenv"
)

const pollInterval = 20 * time.Millisecond

// A Fleet is a set of pods with simulated kubelets and a simulated controller.
type Fleet struct {
	// Backdate is subtracted from the times at which containers ended, for tests that do not wait
	// for a minute.
	Backdate time.Duration
	// Healer, if not nil, is the process that finds lost pods. Its log has the times.
	Healer *testenv.Daemon
	// Pods are the first pods. Their client configurations may be changed before Run.
	Pods []load.Pod

	env       *testenv.Env
	component calico.Component

	mu     sync.Mutex
	byUID  map[types.UID]*member
	lost   map[types.UID]time.Time // when each pod was lost, also of deleted pods
	report Report
	fault  error
}

// A member is a place in the fleet that one pod after another takes.
type member struct {
	owner  types.UID
	served bool      // its pod has its certificate
	lost   time.Time // when its pod was lost; zero if it is not
}

// A Report counts the pods by outcome.
type Report struct {
	First     load.Report   // of the clients of the first pods
	Lost      int           // lost pods, also of replacements
	Detected  int           // lost pods that Healer found
	Detection time.Duration // the longest time until Healer found a lost pod
	Deleted   int           // lost pods that were deleted
	Deletion  time.Duration // the longest time until a lost pod was deleted
	Unserved  int           // members without a certificate at the end
	Took      time.Duration // until every pod had its certificate, or the limit
}

// String returns the report as one line.
func (r Report) String() string {
	return fmt.Sprintf("first pods: %v; lost %d, found %d within %s, deleted %d within %s; "+
		"without a certificate %d after %s", r.First, r.Lost, r.Detected,
		r.Detection.Round(time.Second), r.Deleted, r.Deletion.Round(time.Second),
		r.Unserved, r.Took.Round(time.Second))
}

// New creates this many pods of the component. Their clients start with Run.
func New(ctx context.Context, env *testenv.Env, c calico.Component, count int) (*Fleet, error) {
	pods, err := env.LoadPods(ctx, c, count)
	if err != nil {
		return nil, err
	}
	f := &Fleet{
		Pods: pods, env: env, component: c,
		byUID: map[types.UID]*member{}, lost: map[types.UID]time.Time{},
	}
	for i := range pods {
		m := &member{owner: types.UID("owner-of-" + string(pods[i].Asking.Pod.UID))}
		if err := f.adopt(ctx, &pods[i], m); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// client is the admin's client for the namespace of the fleet.
func (f *Fleet) client() typedcorev1.PodInterface {
	return f.env.Cluster.Client().CoreV1().Pods(f.component.Namespace)
}

// adopt gives the pod an owner and its place in the fleet.
func (f *Fleet) adopt(ctx context.Context, pod *load.Pod, m *member) error {
	patch := fmt.Sprintf(`{"metadata": {"ownerReferences": [{"apiVersion": "apps/v1",
		"kind": "DaemonSet", "name": %q, "uid": %q, "controller": true}]}}`,
		f.component.ServiceAccount, m.owner)
	owned, err := f.client().Patch(ctx, pod.Asking.Pod.Name, types.MergePatchType, []byte(patch),
		metav1.PatchOptions{})
	if err != nil {
		return err
	}
	pod.Asking.Pod = owned
	f.mu.Lock()
	defer f.mu.Unlock()
	f.byUID[owned.UID] = m
	return nil
}

// Run runs the clients of all pods as the plan says. It ends when every pod has its certificate, or
// at the limit. A client whose timer expires starts again; the plan's Attempts are ignored.
func (f *Fleet) Run(ctx context.Context, plan load.Plan, limit time.Duration) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	plan.Attempts = int(limit/calico.Timeout) + 1
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	group.Go(func() { f.control(ctx, &group, plan) })
	first := plan
	first.Ended = func(i int, outcome load.Outcome, issued bool) {
		f.ended(ctx, f.Pods[i].Asking.Pod, outcome, issued)
	}
	done := make(chan load.Report, 1)
	group.Go(func() { done <- load.Run(ctx, f.Pods, first) })
	f.waitServed(ctx)
	cancel()
	report := <-done
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report.First, f.report.Took, f.report.Unserved = report, time.Since(began), f.unserved()
	f.addDetection()
	return f.report, f.fault
}

// addDetection adds to the report how long Healer took to find the pods, according to its log. The
// caller must hold mu.
func (f *Fleet) addDetection() {
	if f.Healer == nil {
		return
	}
	for line := range strings.SplitSeq(f.Healer.Log(), "\n") {
		var entry struct {
			Message string    `json:"@message"`
			At      time.Time `json:"@timestamp"`
			UID     types.UID `json:"uid"`
		}
		if json.Unmarshal([]byte(line), &entry) != nil || entry.Message != "a pod is stuck" {
			continue
		}
		if lost, ours := f.lost[entry.UID]; ours {
			f.report.Detected++
			f.report.Detection = max(f.report.Detection, entry.At.Sub(lost))
		}
	}
}

// waitServed waits until every pod has its certificate, or the context ends.
func (f *Fleet) waitServed(ctx context.Context) {
	_ = wait.PollUntilContextCancel(ctx, pollInterval, true, func(context.Context) (bool, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.unserved() == 0 || f.fault != nil, nil
	})
}

// unserved counts the places without a certificate. The caller must hold mu.
func (f *Fleet) unserved() (n int) {
	for _, m := range f.byUID {
		if !m.served {
			n++
		}
	}
	return n
}

// ended updates the pod as its kubelet does when its client has ended.
func (f *Fleet) ended(ctx context.Context, pod *corev1.Pod, outcome load.Outcome, issued bool) {
	switch {
	case ctx.Err() != nil:
		return
	case outcome == load.Broken:
		f.failed(ctx,
			fmt.Errorf("the client of %s could not reach the API server, or was refused", pod.Name))
		return
	}
	f.note(pod.UID, issued)
	err := f.env.EndInitAt(ctx, pod, issued, time.Now().Add(-f.Backdate))
	f.failed(ctx, unlessGone(err))
}

func unlessGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// note records the outcome of the pod's client.
func (f *Fleet) note(uid types.UID, issued bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.byUID[uid]
	if m == nil {
		return
	}
	if m.served = issued; !issued {
		m.lost = time.Now()
		f.lost[uid] = m.lost
		f.report.Lost++
	}
}

// failed records an error, which ends the run. The end of the context is not an error.
func (f *Fleet) failed(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = errors.Join(f.fault, err)
}

// control watches the pods until the context ends, as kubelets and a controller do. It starts the
// clients of replacements in the group.
func (f *Fleet) control(ctx context.Context, group *sync.WaitGroup, plan load.Plan) {
	changed := func(object any) {
		if pod, is := object.(*corev1.Pod); is && pod.DeletionTimestamp != nil {
			f.finish(ctx, pod)
		}
	}
	gone := func(object any) {
		if missed, is := object.(cache.DeletedFinalStateUnknown); is {
			object = missed.Obj
		}
		if pod, is := object.(*corev1.Pod); is {
			group.Go(func() { f.replace(ctx, pod.UID, plan) })
		}
	}
	api := f.env.Cluster.Client().CoreV1().RESTClient()
	pods := cache.NewListWatchFromClient(api, "pods", f.component.Namespace, fields.Everything())
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: pods, ObjectType: &corev1.Pod{}, Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: changed, UpdateFunc: func(_, now any) { changed(now) }, DeleteFunc: gone,
		},
	})
	informer.RunWithContext(ctx)
}

// finish removes a pod that is being deleted.
func (f *Fleet) finish(ctx context.Context, pod *corev1.Pod) {
	f.mu.Lock()
	m := f.byUID[pod.UID]
	if m != nil && !m.lost.IsZero() {
		f.report.Deleted++
		f.report.Deletion = max(f.report.Deletion, time.Since(m.lost))
		m.lost = time.Time{}
	}
	f.mu.Unlock()
	if m != nil {
		f.failed(ctx, unlessGone(f.env.Cluster.DeletePod(ctx, pod)))
	}
}

// replace creates the replacement of a deleted pod, and runs its client.
func (f *Fleet) replace(ctx context.Context, former types.UID, plan load.Plan) {
	f.mu.Lock()
	m := f.byUID[former]
	delete(f.byUID, former)
	if m != nil {
		m.served = false
		f.byUID["replacement-of-"+former] = m // until it has a replacement
	}
	f.mu.Unlock()
	if m == nil {
		return
	}
	pods, err := f.env.LoadPods(ctx, f.component, 1)
	if err == nil {
		err = f.adopt(ctx, &pods[0], m)
	}
	f.mu.Lock()
	delete(f.byUID, "replacement-of-"+former)
	f.mu.Unlock()
	if err != nil {
		f.failed(ctx, err)
		return
	}
	plan.Ended = func(_ int, outcome load.Outcome, issued bool) {
		f.ended(ctx, pods[0].Asking.Pod, outcome, issued)
	}
	load.Run(ctx, pods, plan)
}
