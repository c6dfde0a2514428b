package testenv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/load"
)

// healer is the service account of deploy/components/heal.
const healer = "hsm-signer-heal"

// Heal starts "hsm-signer heal" with the rights that deploy/components/heal gives it, and waits until
// it listens. The environment is added to the one that is right.
func (e *Env) Heal(ctx context.Context, env ...string) (*Daemon, error) {
	if err := e.Cluster.EnsureNamespace(ctx, "calico-system"); err != nil {
		return nil, err
	}
	manifests, err := os.ReadFile(filepath.Join(root(), "deploy", "components", "heal", "rbac.yaml"))
	if err != nil {
		return nil, err
	}
	if err := e.Cluster.Apply(ctx, manifests); err != nil {
		return nil, fmt.Errorf("apply the component heal: %w", err)
	}
	kubeconfig := filepath.Join(e.dir, healer+".kubeconfig")
	if err := e.kubeconfigOf(ctx, healer, kubeconfig, e.Cluster.ConfigFor); err != nil {
		return nil, err
	}
	own := append(os.Environ(), "SIGNER_NAME="+SignerName, "KUBECONFIG="+kubeconfig,
		"LISTEN_ADDRESS=127.0.0.1:0", "LOG_FORMAT=json")
	return e.start(ctx, "heal", append(own, env...))
}

// A Fleet is a set of pods with the kubelet and the controller that they would have. Use it to see
// what becomes of clients that lose their watch:
//
//	fleet, err := e.NewFleet(ctx, component, 300)
//	fleet.Healer, err = e.Heal(ctx) // or not, for comparison
//	report, err := fleet.Run(ctx, plan, 10*time.Minute)
//
// The kubelet: when a client has its certificate, the init container of its pod ends with 0 and the
// main container gets ready. When a client is lost, the init container ends with 0 as well, and the
// main container ends with an error and waits in CrashLoopBackOff. It is not started again: with
// kubelet's back-off the first pause of more than 60 seconds comes after 10, 20 and 40, so a real
// pod counts as stuck about 70 seconds later than one of a Fleet. A pod that is being deleted goes
// at once. The controller: for each pod that goes it makes another, of a new name, with the same
// owner, whose client asks as the plan says. Each pod has an owner of its own, as a pod of a
// DaemonSet is the only one on its node.
type Fleet struct {
	// Backdate is how long before now the kubelet says that containers ended, for tests that do not
	// wait for a minute.
	Backdate time.Duration
	// Healer is the process whose log says when it found each lost pod; nil: nobody looks.
	Healer *Daemon
	// Pods are the first ones. Their way to the API server may be changed before Run.
	Pods []load.Pod

	env       *Env
	component calico.Component

	mu     sync.Mutex
	byUID  map[types.UID]*member
	lost   map[types.UID]time.Time // when each pod was lost, those that are gone too
	report FleetReport
	fault  error
}

// A member is a place in the fleet: one pod after another has it.
type member struct {
	owner  types.UID
	served bool      // its pod has its certificate
	lost   time.Time // when its pod was lost; zero if it is not
}

// A FleetReport counts the pods by outcome.
type FleetReport struct {
	First     load.Report   // of the clients of the first pods
	Lost      int           // pods that were lost, those among the later ones too
	Detected  int           // lost pods that Healer found
	Detection time.Duration // the longest from the loss of a pod until Healer found it
	Deleted   int           // lost pods that somebody deleted
	Deletion  time.Duration // the longest from the loss of a pod to its deletion
	Unserved  int           // places whose pod has no certificate at the end
	Took      time.Duration // until every pod had its certificate, or until the limit
}

// String returns the report as one line.
func (r FleetReport) String() string {
	return fmt.Sprintf("first pods: %v; lost %d, found %d within %s, deleted %d within %s; without a certificate %d after %s",
		r.First, r.Lost, r.Detected, r.Detection.Round(time.Second), r.Deleted, r.Deletion.Round(time.Second),
		r.Unserved, r.Took.Round(time.Second))
}

// NewFleet makes so many pods of the component, which wait to ask.
func (e *Env) NewFleet(ctx context.Context, c calico.Component, count int) (*Fleet, error) {
	pods, err := e.LoadPods(ctx, c, count)
	if err != nil {
		return nil, err
	}
	f := &Fleet{Pods: pods, env: e, component: c, byUID: map[types.UID]*member{}, lost: map[types.UID]time.Time{}}
	for i := range pods {
		m := &member{owner: types.UID("owner-of-" + string(pods[i].Asking.Pod.UID))}
		if err := f.adopt(ctx, &pods[i], m); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// client is the admin's, for the fleet's namespace.
func (f *Fleet) client() typedcorev1.PodInterface {
	return f.env.Cluster.Client().CoreV1().Pods(f.component.Namespace)
}

// adopt gives the pod its controller, and its place in the fleet.
func (f *Fleet) adopt(ctx context.Context, pod *load.Pod, m *member) error {
	patch := fmt.Sprintf(`{"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet",
		"name": %q, "uid": %q, "controller": true}]}}`, f.component.ServiceAccount, m.owner)
	owned, err := f.client().Patch(ctx, pod.Asking.Pod.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		return err
	}
	pod.Asking.Pod = owned
	f.mu.Lock()
	defer f.mu.Unlock()
	f.byUID[owned.UID] = m
	return nil
}

// Run has all pods ask as the plan says, and ends when every pod has its certificate, or at the
// limit. A client that runs into its timer starts over; the plan's Attempts count for nothing.
func (f *Fleet) Run(ctx context.Context, plan load.Plan, limit time.Duration) (FleetReport, error) {
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

// addDetection adds to the report when the healer found the pods, as its log says. The caller must
// hold mu.
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
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		f.mu.Lock()
		done := f.unserved() == 0 || f.fault != nil
		f.mu.Unlock()
		if done {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
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

// ended is what the kubelet does when the client of a pod has ended.
func (f *Fleet) ended(ctx context.Context, pod *corev1.Pod, outcome load.Outcome, issued bool) {
	switch {
	case ctx.Err() != nil:
		return
	case outcome == load.Broken:
		f.failed(ctx, fmt.Errorf("the client of %s could not reach the API server, or was refused", pod.Name))
		return
	}
	f.note(pod.UID, issued)
	status := afterInit(pod, issued, metav1.NewTime(time.Now().Add(-f.Backdate)))
	_, err := f.client().UpdateStatus(ctx, status, metav1.UpdateOptions{})
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

// failed keeps the first error, which ends the run. The end of the context is none.
func (f *Fleet) failed(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = errors.Join(f.fault, err)
}

// afterInit returns the pod with the status that kubelet gives it once its init container has ended
// with 0: its main container runs if there are files, and otherwise has crashed.
func afterInit(pod *corev1.Pod, files bool, now metav1.Time) *corev1.Pod {
	pod = pod.DeepCopy()
	// What was updated is the status as it was read: nobody else writes it.
	pod.ResourceVersion = ""
	pod.Status.Phase = corev1.PodRunning
	for i := range pod.Status.InitContainerStatuses {
		status := &pod.Status.InitContainerStatuses[i]
		began := now
		if status.State.Running != nil {
			began = status.State.Running.StartedAt
		}
		status.Ready = true
		status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			Reason: "Completed", StartedAt: began, FinishedAt: now,
		}}
	}
	for i := range pod.Status.ContainerStatuses {
		status := &pod.Status.ContainerStatuses[i]
		if files {
			status.Ready = true
			status.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}
			continue
		}
		status.State.Waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}
		status.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{
			Reason: "Error", ExitCode: 1, StartedAt: now, FinishedAt: now,
		}
	}
	return pod
}

// control follows the pods until the context ends, as their kubelet and their controller do. What it
// starts is in the group.
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

// finish lets a pod go that is being deleted.
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

// replace makes the successor of a pod of the fleet, and has its client ask.
func (f *Fleet) replace(ctx context.Context, former types.UID, plan load.Plan) {
	f.mu.Lock()
	m := f.byUID[former]
	delete(f.byUID, former)
	if m != nil {
		m.served = false
		f.byUID["successor-of-"+former] = m // until there is one
	}
	f.mu.Unlock()
	if m == nil {
		return
	}
	pod, err := f.env.loadPod(ctx, f.component)
	if err == nil {
		err = f.adopt(ctx, &pod, m)
	}
	f.mu.Lock()
	delete(f.byUID, "successor-of-"+former)
	f.mu.Unlock()
	if err != nil {
		f.failed(ctx, err)
		return
	}
	plan.Ended = func(_ int, outcome load.Outcome, issued bool) { f.ended(ctx, pod.Asking.Pod, outcome, issued) }
	load.Run(ctx, []load.Pod{pod}, plan)
}
