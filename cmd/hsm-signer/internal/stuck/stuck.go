// Package stuck knows which pods run without the certificate that was issued to them.
//
// Duty: Calico's init container exits with 0 and without files when the API server closes its watch
// early. kubelet then starts the main containers, which fail, and never runs the init container
// again: the pod stays broken until somebody deletes it. This package finds such pods. The daemon,
// "audit list --stuck" and "heal" all judge by it.
//
// Contract: it reads, and changes nothing. A pod is stuck if a request of it was answered, all of
// its init containers ended with 0, no main container has been ready or running for 60 seconds, and
// at least one of them is waiting or ended with an error. A pod that has finished, is being
// deleted, or mirrors a static pod is never stuck. The phase decides nothing else: a pod in
// CrashLoopBackOff has the phase Running. A pod is known by the UID in the token that it asked
// with, and by nothing that it can choose. Whatever is not known, such as a time that the status
// lacks, makes a pod not stuck.
package stuck

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"hsm-signer/kube"
)

const (
	// quiet is how long no main container must have run.
	quiet = 60 * time.Second
	// resolution is that of the times in the API: an event happened up to one second after its
	// time.
	resolution = time.Second
)

// An Answer is a request of a pod that has its certificate.
type Answer struct {
	Request   string    // UID of the request
	Namespace string    // of the pod
	Pod       string    // UID of the pod
	Asked     time.Time // when the request was created; zero if that is not known
	Earliest  time.Time // before this, nobody had the certificate; zero if that is not known
}

// A Verdict says how a pod stands.
type Verdict struct {
	Stuck bool
	// Sure reports whether an init container ended before its certificate was there, so the pod
	// cannot have it. Otherwise a stuck pod may have its certificate, and fail for another reason.
	Sure bool
	// Settled reports whether the pod has what it needs, or is about to go: it will not get stuck.
	Settled bool
	// Why is the evidence if the pod is stuck, and otherwise why it is not.
	Why string
}

// Judge says how a pod stands at a time. The answers are those to the pod's requests; others count
// for nothing.
func Judge(pod *corev1.Pod, answers []Answer, now time.Time) Verdict {
	inits, verdict := judgeStatus(pod, now)
	if !verdict.Stuck {
		return verdict
	}
	own := answersTo(pod, answers)
	if len(own) == 0 {
		return Verdict{Why: "no request of it was answered"}
	}
	for _, answer := range own {
		if run, late := answer.after(inits); late {
			verdict.Sure = true
			verdict.Why = fmt.Sprintf("init container %s ended at %s, before there was a "+
				"certificate at %s",
				run.name, rfc3339(run.ended), rfc3339(answer.Earliest))
		}
	}
	return verdict
}

func answersTo(pod *corev1.Pod, answers []Answer) (own []Answer) {
	for _, answer := range answers {
		if answer.Pod != "" && answer.Pod == string(pod.UID) {
			own = append(own, answer)
		}
	}
	return own
}

// judgeStatus says how a pod stands if a request of it was answered. It returns the runs of the
// init containers if the pod is stuck.
func judgeStatus(pod *corev1.Pod, now time.Time) ([]run, Verdict) {
	if why := exempt(pod); why != "" {
		return nil, Verdict{Settled: true, Why: why}
	}
	inits, why := initRuns(pod)
	if why != "" {
		return nil, Verdict{Why: why}
	}
	mains, why := mainContainers(pod)
	if why != "" {
		return nil, Verdict{Why: why}
	}
	return inits, mains.judge(latest(inits), now)
}

// exempt returns why the pod is never stuck, or an empty string.
func exempt(pod *corev1.Pod) string {
	switch {
	case pod.DeletionTimestamp != nil:
		return "it is being deleted"
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return "it has finished"
	case IsMirror(pod):
		return "it mirrors a static pod of its node"
	case len(initContainers(pod)) == 0:
		return "it has no init container that ends"
	}
	return ""
}

// IsMirror reports whether the pod mirrors a static pod: kubelet makes it again at once, and has
// not restarted the static pod.
func IsMirror(pod *corev1.Pod) bool {
	_, is := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return is
}

// A run is the last run of an init container, which ended with 0.
type run struct {
	name           string
	started, ended time.Time
}

// initRuns returns the runs of the init containers that end, or why there are none yet.
func initRuns(pod *corev1.Pod) (runs []run, why string) {
	for _, container := range initContainers(pod) {
		status := statusOf(container.Name, pod.Status.InitContainerStatuses)
		if status == nil || status.State.Terminated == nil {
			return nil, fmt.Sprintf("init container %s has not ended", container.Name)
		}
		ended := status.State.Terminated
		switch {
		case ended.ExitCode != 0 || ended.Signal != 0:
			return nil, fmt.Sprintf("init container %s failed, and runs again", container.Name)
		case ended.FinishedAt.IsZero():
			return nil, fmt.Sprintf("the status does not say when init container %s ended",
				container.Name)
		}
		runs = append(runs, run{container.Name, ended.StartedAt.Time, ended.FinishedAt.Time})
	}
	return runs, ""
}

// initContainers returns the init containers that end. A sidecar does not: it is an init container
// with the restart policy Always.
func initContainers(pod *corev1.Pod) (ending []corev1.Container) {
	for _, container := range pod.Spec.InitContainers {
		if !kube.IsSidecar(container) {
			ending = append(ending, container)
		}
	}
	return ending
}

func statusOf(name string, statuses []corev1.ContainerStatus) *corev1.ContainerStatus {
	for i := range statuses {
		if statuses[i].Name == name {
			return &statuses[i]
		}
	}
	return nil
}

func latest(runs []run) (end time.Time) {
	for _, run := range runs {
		end = later(end, run.ended)
	}
	return end
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// after returns the init container that asked, and reports whether it ended before the certificate
// was there. Init containers run one after another, so the one that ran when the request was
// created has made it. If several may have run then, or none did, each of them must have ended.
func (a Answer) after(inits []run) (asked run, late bool) {
	if a.Earliest.IsZero() {
		return run{}, false
	}
	candidates := a.madeBy(inits)
	for _, candidate := range candidates {
		if a.Earliest.Before(candidate.ended.Add(resolution)) {
			return run{}, false
		}
	}
	return candidates[len(candidates)-1], true
}

// madeBy returns the runs that may have made the request; all, if none was under way.
func (a Answer) madeBy(inits []run) (candidates []run) {
	for _, run := range inits {
		began := a.Asked.Add(resolution).After(run.started)
		if !a.Asked.IsZero() && began && a.Asked.Before(run.ended.Add(resolution)) {
			candidates = append(candidates, run)
		}
	}
	if len(candidates) == 0 {
		return inits
	}
	return candidates
}

func rfc3339(t time.Time) string { return t.UTC().Format(time.RFC3339) }
