package stuck

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var now = time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)

// ago is a time of the API: with whole seconds.
func ago(d time.Duration) metav1.Time { return metav1.NewTime(now.Add(-d)) }

// The states that a container can be in.
func ended(code int32, finished time.Duration) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code,
		StartedAt: ago(finished + 10*time.Second), FinishedAt: ago(finished)}}
}

func waiting(reason string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
}

func running() corev1.ContainerState { return runningFor(time.Second) }

func runningFor(d time.Duration) corev1.ContainerState {
	return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: ago(d)}}
}

// stuckPod is one with two init containers, which ended 200 and 150 seconds ago, and a main
// container in a crash loop, which ended 100 seconds ago.
func stuckPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{UID: "pod-1"},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "certificate"}, {Name: "install"}},
			Containers:     []corev1.Container{{Name: "main"}, {Name: "second"}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning,
			InitContainerStatuses: []corev1.ContainerStatus{
				{Name: "certificate", Ready: true, State: ended(0, 200*time.Second)},
				{Name: "install", Ready: true, State: ended(0, 150*time.Second)},
			},
			ContainerStatuses: []corev1.ContainerStatus{
				{Name: "main", State: waiting("CrashLoopBackOff"),
					LastTerminationState: ended(1, 100*time.Second)},
				{Name: "second", State: ended(0, 120*time.Second)},
			},
		},
	}
}

// inTime answers a request of the first init container before that ended.
func inTime() []Answer {
	return []Answer{{Pod: "pod-1", Asked: ago(208 * time.Second).Time,
		Earliest: ago(202 * time.Second).Time}}
}

// addSidecar adds one behind the init containers.
func addSidecar(pod *corev1.Pod, status corev1.ContainerStatus) {
	always := corev1.ContainerRestartPolicyAlways
	status.Name = "sidecar"
	pod.Spec.InitContainers = append(pod.Spec.InitContainers,
		corev1.Container{Name: "sidecar", RestartPolicy: &always})
	pod.Status.InitContainerStatuses = append(pod.Status.InitContainerStatuses, status)
}

func TestPodsThatAreStuck(t *testing.T) {
	started, not := true, false
	for name, change := range map[string]func(*corev1.Pod){
		"in a crash loop":    func(*corev1.Pod) {},
		"with phase Pending": func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending },
		"ended with an error": func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].State = ended(2,
				100*time.Second)
		},
		"never created": func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0] = corev1.ContainerStatus{Name: "main",
				State: waiting("ContainerCreating")}
		},
		"without any state": func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0] = corev1.ContainerStatus{Name: "main"}
		},
		"ended 61 seconds ago": func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].LastTerminationState = ended(1, 61*time.Second)
		},
		"when an earlier run ended is not known": func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].LastTerminationState =
				corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137}}
		},
		"beside a sidecar that runs": func(p *corev1.Pod) {
			addSidecar(p, corev1.ContainerStatus{Started: &started, Ready: true, State: running()})
		},
		"behind a sidecar that crashes": func(p *corev1.Pod) {
			addSidecar(p,
				corev1.ContainerStatus{Started: &not, State: waiting("CrashLoopBackOff"),
					LastTerminationState: ended(1, 70*time.Second)})
		},
	} {
		pod := stuckPod()
		change(pod)
		if v := Judge(pod, inTime(), now); !v.Stuck || v.Sure || v.Settled ||
			!strings.Contains(v.Why, "no main container has run since") {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

func TestPodsThatAreNotStuck(t *testing.T) {
	started, not := true, false
	for name, c := range map[string]struct {
		change  func(*corev1.Pod)
		why     string
		settled bool
	}{
		"being deleted": {func(p *corev1.Pod) { at := ago(0); p.DeletionTimestamp = &at },
			"being deleted", true},
		"succeeded": {func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
			"has finished", true},
		"evicted": {func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, "has finished",
			true},
		"a mirror": {func(p *corev1.Pod) {
			p.Annotations = map[string]string{"kubernetes.io/config.mirror": "hash"}
		}, "static pod", true},
		"without init containers": {func(p *corev1.Pod) { p.Spec.InitContainers = nil },
			"no init container", true},
		"with sidecars alone": {func(p *corev1.Pod) {
			p.Spec.InitContainers = nil
			addSidecar(p, corev1.ContainerStatus{Started: &started, State: running()})
		}, "no init container", true},
		"an init container runs": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[1].State = running()
		}, "install has not ended", false},
		"an init container waits": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[0].State = waiting("CrashLoopBackOff")
			p.Status.InitContainerStatuses[0].LastTerminationState = ended(0, 200*time.Second)
		}, "certificate has not ended", false},
		"an init container failed": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[0].State = ended(1, 200*time.Second)
		}, "certificate failed", false},
		"an init container unknown": {func(p *corev1.Pod) { p.Status.InitContainerStatuses = nil },
			"has not ended", false},
		"no time of an init container": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[0].State.Terminated.FinishedAt = metav1.Time{}
		}, "does not say when", false},
		"a container runs": {func(p *corev1.Pod) {
			p.Status.ContainerStatuses[1].State = running()
		}, "second is running", false},
		"a container is ready": {func(p *corev1.Pod) {
			p.Status.ContainerStatuses[1] = corev1.ContainerStatus{Name: "second", Ready: true}
		}, "second is running", false},
		"all are ready": {func(p *corev1.Pod) {
			for i := range p.Status.ContainerStatuses {
				p.Status.ContainerStatuses[i].State, p.Status.ContainerStatuses[i].Ready =
					runningFor(61*time.Second), true
			}
		}, "are ready", true},
		"all are ready in a crash loop": {func(p *corev1.Pod) {
			for i := range p.Status.ContainerStatuses {
				p.Status.ContainerStatuses[i].State, p.Status.ContainerStatuses[i].Ready =
					runningFor(60*time.Second), true
			}
		}, "is running", false},
		"a container unknown": {func(p *corev1.Pod) {
			p.Status.ContainerStatuses = p.Status.ContainerStatuses[:1]
		}, "no status of container second", false},
		"no time of a container": {func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].State =
				corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137}}
		}, "does not say when", false},
		"all ended well": {func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].State = ended(0,
				100*time.Second)
		}, "no container is waiting", false},
		// and up to one more, since times have whole seconds
		"ended 60 seconds ago": {func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].LastTerminationState = ended(1, 60*time.Second)
		}, "ran, or could not", false},
		"ran between two waits": {func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].LastTerminationState = ended(1, 10*time.Second)
		}, "ran, or could not", false},
		"initialized just now": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[1].State = ended(0, 30*time.Second)
		}, "ran, or could not", false},
		"its node's clock is ahead": {func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].LastTerminationState = ended(1, -time.Hour)
		}, "ran, or could not", false},
		"a sidecar still starts": {func(p *corev1.Pod) {
			addSidecar(p,
				corev1.ContainerStatus{Started: &not,
					State: running()})
		}, "sidecar is running", false},
		"a sidecar unknown": {func(p *corev1.Pod) {
			addSidecar(p, corev1.ContainerStatus{})
			p.Status.InitContainerStatuses = p.Status.InitContainerStatuses[:2]
		}, "no status of sidecar", false},
	} {
		pod := stuckPod()
		c.change(pod)
		if v := Judge(pod, inTime(), now); v.Stuck || v.Sure || v.Settled != c.settled ||
			!strings.Contains(v.Why, c.why) {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// The evidence is strong if the init container that asked certainly ended before there was a
// certificate.
func TestEvidence(t *testing.T) {
	answer := func(asked, earliest time.Duration) Answer {
		return Answer{Pod: "pod-1", Asked: ago(asked).Time, Earliest: ago(earliest).Time}
	}
	unknownAsked := Answer{Pod: "pod-1", Earliest: ago(180 * time.Second).Time}
	for name, c := range map[string]struct {
		answers []Answer
		stuck   bool
		names   string // the init container that is named; empty: the evidence is not strong
	}{
		"none": {nil, false, ""},
		"another pod's": {[]Answer{{Pod: "pod-2", Earliest: ago(0).Time}},
			false, ""},
		"of no pod": {[]Answer{{Earliest: ago(0).Time}}, false, ""},
		"in time":   {inTime(), true, ""},
		"too late": {[]Answer{answer(208*time.Second, 190*time.Second)},
			true, "certificate"},
		"in the second after the end": {[]Answer{answer(208*time.Second, 199*time.Second)},
			true, "certificate"},
		"in the second of the end": {[]Answer{answer(208*time.Second, 200*time.Second)},
			true, ""},
		"too late for the second container": {[]Answer{answer(155*time.Second, 140*time.Second)},
			true, "install"},
		"one of two too late": {append(inTime(),
			answer(155*time.Second, 140*time.Second)), true, "install"},
		"asked by one of two": {[]Answer{answer(200*time.Second, 170*time.Second)},
			true, "certificate"},
		"asked in no run, late for both": {[]Answer{answer(100*time.Second, 90*time.Second)},
			true, "install"},
		"asked in no run, late for one": {[]Answer{answer(300*time.Second, 170*time.Second)},
			true, ""},
		"nobody knows when it was asked": {[]Answer{unknownAsked}, true, ""},
		"nobody knows when it was answered": {[]Answer{{Pod: "pod-1",
			Asked: ago(208 * time.Second).Time}}, true, ""},
	} {
		pod := stuckPod()
		v := Judge(pod, c.answers, now)
		if v.Stuck != c.stuck || v.Sure != (c.names != "") || !strings.Contains(v.Why, c.names) {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// A failed run of the init container asked before. Its request, answered late, says nothing of the
// next run.
func TestAnswerToAnEarlierRun(t *testing.T) {
	earlier := Answer{Pod: "pod-1", Asked: ago(300 * time.Second).Time,
		Earliest: ago(205 * time.Second).Time}
	if v := Judge(stuckPod(), append(inTime(), earlier), now); !v.Stuck || v.Sure {
		t.Errorf("%+v", v)
	}
}
