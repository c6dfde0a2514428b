package stuck

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"hsm-signer/kube"
)

// mains are the statuses of the main containers, and of the sidecars that hold these back: kubelet
// starts no main container before every sidecar has started.
type mains []*corev1.ContainerStatus

// mainContainers returns the statuses, or why they are not known.
func mainContainers(pod *corev1.Pod) (all mains, why string) {
	for _, container := range pod.Spec.InitContainers {
		if !kube.IsSidecar(container) {
			continue
		}
		status := statusOf(container.Name, pod.Status.InitContainerStatuses)
		if status == nil {
			return nil, fmt.Sprintf("there is no status of sidecar %s yet", container.Name)
		}
		if status.Started == nil || !*status.Started {
			all = append(all, status)
		}
	}
	for _, container := range pod.Spec.Containers {
		status := statusOf(container.Name, pod.Status.ContainerStatuses)
		if status == nil {
			return nil, fmt.Sprintf("there is no status of container %s yet", container.Name)
		}
		all = append(all, status)
	}
	return all, ""
}

// judge says how a pod stands whose init containers have all ended, the last one at that time.
func (m mains) judge(initialized, now time.Time) Verdict {
	if m.work(now) {
		return Verdict{Settled: true, Why: "all of its containers are ready and have run for a " +
			"while"}
	}
	since, failing := initialized, false
	for _, status := range m {
		if runs(status) {
			return Verdict{Why: fmt.Sprintf("container %s is running", status.Name)}
		}
		if ended := status.State.Terminated; ended != nil && ended.FinishedAt.IsZero() {
			return Verdict{Why: "the status does not say when container " + status.Name + " ended"}
		}
		since = later(since, lastRun(status))
		failing = failing || fails(status)
	}
	switch {
	case !failing:
		return Verdict{Why: "no container is waiting or ended with an error"}
	case now.Before(since.Add(quiet + resolution)):
		return Verdict{Why: "a container ran, or could not run yet, until " + rfc3339(since)}
	}
	return Verdict{
		Stuck: true,
		Why: "all init containers ended with 0, and no main container has run since " +
			rfc3339(since),
	}
}

// work reports whether all containers are ready, and have run for longer than one does in a crash
// loop: without a readiness probe a container is ready as soon as it runs.
func (m mains) work(now time.Time) bool {
	for _, status := range m {
		running := status.State.Running
		if !status.Ready || running == nil || now.Before(running.StartedAt.Add(quiet+resolution)) {
			return false
		}
	}
	return true
}

// runs reports whether the container is ready or running.
func runs(status *corev1.ContainerStatus) bool {
	return status.Ready ||
		status.State.Running != nil
}

// fails reports whether the container is waiting or ended with an error. One without any state is
// waiting: as the API defines it.
func fails(status *corev1.ContainerStatus) bool {
	ended := status.State.Terminated
	return ended == nil || ended.ExitCode != 0 || ended.Signal != 0
}

// lastRun returns when the container last ended; zero if it never ran, or if that is not known of
// an earlier run.
func lastRun(status *corev1.ContainerStatus) (at time.Time) {
	for _, state := range []corev1.ContainerState{status.State, status.LastTerminationState} {
		if state.Terminated != nil {
			at = later(at, state.Terminated.FinishedAt.Time)
		}
	}
	return at
}
