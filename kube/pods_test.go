package kube

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// A pod initializes until each of its init containers has ended well, or a sidecar has started.
func TestIsInitializing(t *testing.T) {
	ended := func(code int32) corev1.ContainerStatus {
		return corev1.ContainerStatus{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}}
	}
	started, running := true,
		corev1.ContainerStatus{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
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
