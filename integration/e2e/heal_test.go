package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
)

// A podState is a Calico pod in the state in which its kubelet and its controller left it.
type podState struct {
	name      string
	stuck     bool
	deleted   bool             // by heal
	edit      func(*podPlayed) // of a pod that is stuck in a crash loop
	approved  time.Duration    // how long ago its request was
	noRequest bool
}

// A podPlayed is a pod before its creation, and its later status.
type podPlayed struct {
	pod    *corev1.Pod
	status corev1.PodStatus
}

func ago(d time.Duration) metav1.Time { return metav1.NewTime(time.Now().Add(-d)) }

func endedAgo(code int32, d time.Duration) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code,
		StartedAt: ago(d + time.Second), FinishedAt: ago(d)}}
}

func waitingFor(reason string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
}

func runningNow() corev1.ContainerState {
	return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: ago(0)}}
}

// mains sets the states of both main containers.
func mains(first, second corev1.ContainerState) func(*podPlayed) {
	return func(p *podPlayed) {
		for i, state := range []corev1.ContainerState{first, second} {
			p.status.ContainerStatuses[i] =
				corev1.ContainerStatus{Name: p.status.ContainerStatuses[i].Name, State: state,
					Ready: state.Running != nil}
		}
	}
}

// inits sets the state of the second init container.
func inits(state corev1.ContainerState) func(*podPlayed) {
	return func(p *podPlayed) { p.status.InitContainerStatuses[1].State = state }
}

// sidecar adds a sidecar with this status.
func sidecar(started bool, state corev1.ContainerState) func(*podPlayed) {
	return func(p *podPlayed) {
		always := corev1.ContainerRestartPolicyAlways
		p.pod.Spec.InitContainers = append(p.pod.Spec.InitContainers,
			corev1.Container{Name: "sidecar", Image: "none.invalid/sidecar",
				RestartPolicy: &always})
		p.status.InitContainerStatuses = append(p.status.InitContainerStatuses,
			corev1.ContainerStatus{Name: "sidecar", Started: &started, Ready: started,
				State: state})
	}
}

// sameOwnerAndNode gives all pods with this edit the same owner and node.
func sameOwnerAndNode(p *podPlayed) {
	p.pod.OwnerReferences[0].UID, p.pod.Spec.NodeName = "owner-of-two", "node-of-two"
}

const longAgo = 10 * time.Minute

// podStates are pods in every state. All but one have an answered request.
var podStates = []podState{
	{name: "crash-loop", stuck: true, deleted: true},
	{name: "ended-with-error", stuck: true, deleted: true,
		edit: mains(endedAgo(1, longAgo), endedAgo(0, longAgo))},
	{name: "container-creating", stuck: true, deleted: true,
		edit: mains(waitingFor("ContainerCreating"), waitingFor("ContainerCreating"))},
	{name: "phase-pending", stuck: true, deleted: true,
		edit: func(p *podPlayed) { p.status.Phase = corev1.PodPending }},
	{name: "sidecar-runs", stuck: true, deleted: true, edit: sidecar(true, runningNow())},
	{name: "sidecar-crashes", stuck: true, deleted: true,
		edit: sidecar(false, waitingFor("CrashLoopBackOff"))},
	{name: "weak-1", stuck: true, deleted: true, edit: sameOwnerAndNode, approved: longAgo},
	{name: "weak-2", stuck: true, edit: sameOwnerAndNode, approved: longAgo},
	{name: "no-owner", stuck: true, edit: func(p *podPlayed) { p.pod.OwnerReferences = nil }},

	{name: "not-answered", noRequest: true},
	{name: "ready", edit: mains(runningNow(), runningNow())},
	{name: "running-not-ready",
		edit: func(p *podPlayed) { p.status.ContainerStatuses[0].State = runningNow() }},
	{name: "one-of-two-runs", edit: mains(waitingFor("CrashLoopBackOff"), runningNow())},
	{name: "one-of-two-ready",
		edit: func(p *podPlayed) { p.status.ContainerStatuses[1].Ready = true }},
	{name: "all-completed", edit: mains(endedAgo(0, longAgo), endedAgo(0, longAgo))},
	{name: "ran-lately",
		edit: func(p *podPlayed) {
			p.status.ContainerStatuses[0].LastTerminationState = endedAgo(1,
				-time.Hour)
		}},
	{name: "initialized-lately", edit: inits(endedAgo(0, -time.Hour))},
	{name: "init-runs", edit: inits(runningNow())},
	{name: "init-failed", edit: inits(endedAgo(1, longAgo))},
	{name: "init-waits", edit: inits(waitingFor("CrashLoopBackOff"))},
	{name: "sidecar-starts", edit: sidecar(false, runningNow())},
	{name: "succeeded", edit: func(p *podPlayed) { p.status.Phase = corev1.PodSucceeded }},
	{name: "evicted", edit: func(p *podPlayed) { p.status.Phase = corev1.PodFailed }},
	{name: "mirror",
		edit: func(p *podPlayed) {
			p.pod.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "hash"}
		}},
}

// played creates the pod, which initializes, as it is when it sends its request.
func (s podState) played(t *testing.T, c calico.Component) (*podPlayed, *corev1.Pod) {
	t.Helper()
	container := func(name string) corev1.Container {
		return corev1.Container{Name: name,
			Image: "none.invalid/" + name}
	}
	controls, node := true, "node-of-"+s.name
	p := &podPlayed{
		pod: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", s.name, numbers.Add(1)),
				OwnerReferences: []metav1.OwnerReference{{
					APIVersion: "apps/v1", Kind: "DaemonSet", Name: c.ServiceAccount,
					UID: types.UID("owner-of-" + s.name), Controller: &controls,
				}}},
			Spec: corev1.PodSpec{
				ServiceAccountName: c.ServiceAccount, NodeName: node,
				InitContainers: []corev1.Container{container("certificate"), container("install")},
				Containers:     []corev1.Container{container("main"), container("second")},
			},
		},
		status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: shared.NextIP(),
			InitContainerStatuses: []corev1.ContainerStatus{
				{Name: "certificate", State: endedAgo(0, 2*time.Minute)}, {Name: "install",
					State: endedAgo(0, 2*time.Minute)},
			},
			ContainerStatuses: []corev1.ContainerStatus{
				{Name: "main", State: waitingFor("CrashLoopBackOff"),
					LastTerminationState: endedAgo(1, 90*time.Second)},
				{Name: "second", State: waitingFor("CrashLoopBackOff"),
					LastTerminationState: endedAgo(1, 90*time.Second)},
			},
		},
	}
	p.status.PodIPs = []corev1.PodIP{{IP: p.status.PodIP}}
	if s.edit != nil {
		s.edit(p)
	}
	must.OK(t, shared.Cluster.EnsureServiceAccount(t.Context(), c.Namespace, c.ServiceAccount))
	must.OK(t, shared.Cluster.EnsureNode(t.Context(), p.pod.Spec.NodeName))
	pods := shared.Cluster.Client().CoreV1().Pods(c.Namespace)
	made := must.Get(pods.Create(t.Context(), p.pod, metav1.CreateOptions{}))(t)
	made.Status.PodIP, made.Status.PodIPs = p.status.PodIP, p.status.PodIPs
	made = must.Get(pods.UpdateStatus(t.Context(), made, metav1.UpdateOptions{}))(t)
	return p, made
}

// make creates the pod, has its request answered, and writes its status.
func (s podState) make(t *testing.T, c calico.Component) *corev1.Pod {
	t.Helper()
	p, made := s.played(t, c)
	if !s.noRequest {
		pod := must.Get(shared.Cluster.WithToken(t.Context(), made))(t)
		csr := submit(t, pod, pod.InitContainer(c))
		decide(t, shared.Cluster.Client(), csr.Name,
			certificatesv1.CertificateSigningRequestCondition{
				Type: certificatesv1.CertificateApproved, LastUpdateTime: ago(s.approved)})
		must.Get(calico.Wait(t.Context(), pod.Client, csr.Name))(t)
	}
	made.Status = p.status
	made, err := shared.Cluster.Client().CoreV1().Pods(c.Namespace).UpdateStatus(t.Context(), made,
		metav1.UpdateOptions{})
	must.OK(t, err)
	return made
}

// heal deletes only stuck pods: no pod that runs, is ready, starts, has finished, is being deleted,
// mirrors a static pod, or has no controller. The metric and audit list show the stuck pods too.
func TestHealDeletesStuckPodsAlone(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	d := startReady(t, ca, "APPROVE=false", "STATE_DIR="+state)
	byName := map[string]podState{} // of the pod
	made := map[string]*corev1.Pod{}
	stuck := 0
	for _, s := range podStates {
		pod := s.make(t, node)
		t.Cleanup(func() { _ = shared.Cluster.DeletePod(context.WithoutCancel(t.Context()), pod) })
		if byName[pod.Name], made[pod.Name] = s, pod; s.stuck {
			stuck++
		}
	}
	deleting := podState{name: "deleting"}.make(t, node) // it stays, since there is no kubelet
	t.Cleanup(func() { _ = shared.Cluster.DeletePod(context.WithoutCancel(t.Context()), deleting) })
	pods := shared.Cluster.Client().CoreV1().Pods(node.Namespace)
	must.OK(t, pods.Delete(t.Context(), deleting.Name, metav1.DeleteOptions{}))

	requireListed(t, state, byName)
	waitMetrics(t, d, fmt.Sprintf("\nhsm_signer_stuck_pods %d\n", stuck))
	healer := startHealer(t)
	waitMetrics(t, healer, "\nhsm_signer_heal_stuck_pods 2\n") // weak-2 and no-owner
	list := must.Get(pods.List(t.Context(), metav1.ListOptions{}))(t)
	for _, pod := range list.Items {
		s, ours := byName[pod.Name]
		if ours && s.deleted != (pod.DeletionTimestamp != nil) {
			t.Errorf("%s: deleted is %t; the log of heal:\n%s", s.name, !s.deleted, healer.Log())
		}
		if ours && !s.deleted && pod.ResourceVersion != made[pod.Name].ResourceVersion {
			t.Errorf("%s was changed", s.name)
		}
	}
	requireHealEvents(t, node.Namespace, byName)
	if metrics := healer.Metrics(t.Context()); !strings.Contains(metrics,
		`deleted_pods_total{evidence="strong"} 6`) ||
		!strings.Contains(metrics, `deleted_pods_total{evidence="weak"} 1`) {
		t.Errorf("heal counts otherwise:\n%s", metrics)
	}
}

// requireListed requires that audit list --stuck lists the stuck pods and no others.
func requireListed(t *testing.T, state string, byName map[string]podState) {
	t.Helper()
	text := command(t, ca, nil, "audit", "list", state, "--stuck").prints(t, 0)
	for name, s := range byName {
		command := "\n  kubectl -n calico-system delete pod " + name + "\n"
		if strings.Contains(text, command) != s.stuck ||
			strings.Contains(text, name+"  ") != s.stuck {
			t.Errorf("%s: stuck is %t, and the list is:\n%s", s.name, s.stuck, text)
		}
	}
	var listed []string
	lines := command(t, ca, nil, "audit", "list", state, "--stuck", "--output", "json").prints(t, 0)
	for line := range strings.Lines(lines) {
		var view struct {
			Pod struct{ Name, Evidence, Restart string }
		}
		must.OK(t, json.Unmarshal([]byte(line), &view))
		listed = append(listed, view.Pod.Name)
		if !byName[view.Pod.Name].stuck || view.Pod.Evidence == "" ||
			!strings.HasSuffix(view.Pod.Restart, "delete pod "+view.Pod.Name) {
			t.Errorf("listed is %s", line)
		}
	}
	if len(listed) != strings.Count(text, "\n  kubectl ") || !slices.IsSorted(listed) {
		t.Errorf("listed are %q", listed)
	}
}

// requireHealEvents requires an event on each deleted pod, and on the one without an owner.
func requireHealEvents(t *testing.T, namespace string, byName map[string]podState) {
	t.Helper()
	want := map[string]string{}
	for name, s := range byName {
		switch {
		case s.deleted:
			want[name] = "StuckPodDeleted"
		case s.name == "no-owner":
			want[name] = "StuckPodNotDeleted"
		}
	}
	must.Eventually(t, "the events", func(ctx context.Context) (bool, error) {
		events, err := shared.Cluster.Client().CoreV1().Events(namespace).List(ctx,
			metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		got := map[string]string{}
		for _, event := range events.Items {
			if _, ours := byName[event.InvolvedObject.Name]; ours &&
				event.Source.Component == "hsm-signer-heal" {
				got[event.InvolvedObject.Name] = event.Reason
			}
		}
		for name := range got {
			if want[name] == "" {
				return false, fmt.Errorf("%s has the event %s", name, got[name])
			}
		}
		return len(got) == len(want), nil
	})
}

// heal refuses to run with a PIN.
func TestHealDoesNotStartWithAPIN(t *testing.T) {
	for _, variable := range []string{"PKCS11_PIN=1234", "PKCS11_PIN_FILE=/pin",
		"PKCS11_URI=pkcs11:?pin-value=1234"} {
		name, _, _ := strings.Cut(variable, "=")
		p := command(t, ca, []string{"PKCS11_PIN=", variable}, "heal")
		p.lacks(t, "1234")
		if text := p.complains(t, 4, "needs no token"); name != "PKCS11_URI" &&
			!strings.Contains(text, name+": is set") {
			t.Errorf("%s: %s", name, text)
		}
	}
}
