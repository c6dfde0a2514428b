package kube

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// A pod initializes until each of its init containers has ended well, or a sidecar has started.
func TestIsInitializing(t *testing.T) {
	ended := func(code int32) corev1.ContainerStatus {
		return corev1.ContainerStatus{State: corev1.ContainerState{
			Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}}
	}
	started, running := true, corev1.ContainerStatus{
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	sidecar := running
	sidecar.Started = &started
	for name, c := range map[string]struct {
		statuses []corev1.ContainerStatus
		spec     int
		want     bool
	}{
		"no init containers":     {nil, 0, false},
		"no status yet":          {nil, 1, true},
		"one runs":               {[]corev1.ContainerStatus{running}, 1, true},
		"one failed":             {[]corev1.ContainerStatus{ended(1)}, 1, true},
		"all ended well":         {[]corev1.ContainerStatus{ended(0), ended(0)}, 2, false},
		"the second is to come":  {[]corev1.ContainerStatus{ended(0)}, 2, true},
		"a sidecar has started":  {[]corev1.ContainerStatus{ended(0), sidecar}, 2, false},
		"a sidecar, one to come": {[]corev1.ContainerStatus{sidecar}, 2, true},
	} {
		always := corev1.ContainerRestartPolicyAlways
		pod := &corev1.Pod{Status: corev1.PodStatus{InitContainerStatuses: c.statuses}}
		for i := range c.spec {
			container := corev1.Container{Name: fmt.Sprint(i)}
			if i < len(c.statuses) {
				c.statuses[i].Name = container.Name
			}
			if i < len(c.statuses) && c.statuses[i].Started != nil {
				container.RestartPolicy = &always
			}
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, container)
		}
		if got := isInitializing(pod); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}

// A pod has had its certificate if its sandbox was made, although its image cannot be pulled, or if
// a container was started, although its sandbox is gone.
func TestStartedPods(t *testing.T) {
	sandbox := func(is corev1.ConditionStatus) []corev1.PodCondition {
		return []corev1.PodCondition{{Type: corev1.PodReadyToStartContainers, Status: is}}
	}
	pulling := corev1.ContainerStatus{State: corev1.ContainerState{
		Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}}
	running := corev1.ContainerStatus{State: corev1.ContainerState{
		Running: &corev1.ContainerStateRunning{}}}
	for name, c := range map[string]struct {
		status corev1.PodStatus
		want   bool
	}{
		"new":        {corev1.PodStatus{}, false},
		"no sandbox": {corev1.PodStatus{Conditions: sandbox(corev1.ConditionFalse)}, false},
		"pulls image": {corev1.PodStatus{
			ContainerStatuses: []corev1.ContainerStatus{pulling}}, false},
		"pulls image in its sandbox": {corev1.PodStatus{Conditions: sandbox(corev1.ConditionTrue),
			ContainerStatuses: []corev1.ContainerStatus{pulling}}, true},
		"runs": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{running}}, true},
		"restarted, with a new sandbox": {corev1.PodStatus{Conditions: sandbox(corev1.ConditionFalse),
			ContainerStatuses: []corev1.ContainerStatus{{RestartCount: 1}}}, true},
		"in an init container": {corev1.PodStatus{
			InitContainerStatuses: []corev1.ContainerStatus{running}}, true},
	} {
		if got := isStarted(&corev1.Pod{Status: c.status}); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}
