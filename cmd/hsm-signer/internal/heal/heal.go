// Package heal deletes pods that are stuck without their certificate, so that they ask again.
//
// Duty: it knows the answered requests of the signers from the API, reads the pods that made
// them as [stuck] judges, and deletes those that are stuck. Their controllers make new ones.
//
// Contract: a pod is read again, judged again and deleted only as it was just read (UID and
// resourceVersion). So no pod with a ready or running main container is deleted, also if it came
// back to life in between. A pod that no controller makes again is reported and never deleted. If
// an init container certainly ended before its certificate was there, the pod is deleted at once,
// and so are its next [maxRepeats] successors. Otherwise there is one deletion for each owner and
// node in [pause]. Deletions are slow, since each makes a new request: [burst] at once, then one in
// each [interval], and none while more than [maxWaiting] requests wait for their answer. The
// package knows no token, no journal and no CA.
package heal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"

	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/stuck"
	"hsm-signer/kube/clientset"
)

const (
	// burst is how many pods may be deleted at once, after a while without any.
	burst = 5
	// interval is the time between two deletions after that. Calico's clients support far more:
	// with 20 new ones a second none of them loses its watch.
	interval = time.Second
	// maxWaiting is how many requests may wait for their answer. With more, nothing is deleted.
	maxWaiting = 20
	// pause is the time between two deletions for one owner and node without strong evidence.
	pause = 10 * time.Minute
	// callTimeout bounds one call to the API server.
	callTimeout = 10 * time.Second
)

// The reasons of the events on pods, and the component that they come from.
const (
	reasonDeleted = "StuckPodDeleted"
	reasonNoOwner = "StuckPodNotDeleted"
	component     = "hsm-signer-heal"
)

// An Observer is told what happens, to count it. Its methods return at once.
type Observer interface {
	Found(pods int) // at the last look; negative: that is not known
	Deleted(sure bool)
	Failed() // a deletion was tried, and failed
}

// Config says what a Healer heals.
type Config struct {
	Client      clientset.Interface
	SignerNames []string
	Namespaces  []string // of the pods
	Observer    Observer
	Logger      hclog.Logger
}

// A Healer deletes stuck pods; [Healer.Run] starts it.
type Healer struct {
	Config
	requests *requests
	answers  *stuck.Answers
	budget   flowcontrol.RateLimiter
	history  history
	events   record.EventRecorder
	known    map[string]bool // UIDs of the pods that were stuck at the last look
	fault    poll.Fault
}

// New returns a healer.
func New(c Config) *Healer {
	answers := stuck.NewAnswers()
	return &Healer{
		Config: c, answers: answers, requests: newRequests(c, answers), history: history{},
		budget: flowcontrol.NewTokenBucketRateLimiter(float32(time.Second)/float32(interval),
			burst),
	}
}

// Ready returns nil if requests and pods can be read, and otherwise why not.
func (h *Healer) Ready() error { return errors.Join(h.requests.ready(), h.fault.Err()) }

// Run heals until the context ends.
func (h *Healer) Run(ctx context.Context) error {
	broadcaster := record.NewBroadcaster()
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(h.Client.Events())
	h.events = broadcaster.NewRecorder(clientset.Scheme, corev1.EventSource{Component: component})

	defer h.requests.watch(ctx)()
	h.requests.waitWhole(ctx)
	return poll.Every(ctx, stuck.Interval, h.look)
}

// look finds the stuck pods and deletes those that it may.
func (h *Healer) look(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, stuck.LookTimeout)
	defer cancel()
	pods, err := h.answers.Look(limited, h.Client, time.Now())
	if ctx.Err() != nil {
		return
	}
	if h.fault.Note(err) == poll.Fails {
		h.Logger.Error("pods cannot be read, so those that are stuck are not found", "error", err)
	}
	if err != nil {
		h.Observer.Found(-1)
	} else {
		h.Observer.Found(len(pods))
	}
	h.tell(pods)
	h.healAll(ctx, pods)
}

// tell reports the pods that were not stuck at the last look.
func (h *Healer) tell(pods []stuck.Pod) {
	before := h.known
	h.known = map[string]bool{}
	for _, pod := range pods {
		h.known[pod.UID] = true
		if before[pod.UID] {
			continue
		}
		h.Logger.Warn("a pod is stuck", "pod", nameOf(pod), "uid", pod.UID, "sure", pod.Sure,
			"evidence", pod.Why)
		if pod.Owner == nil {
			h.tellOwnerless(pod)
		}
	}
}

// healAll deletes the pods that it may, those with strong evidence first. After a while the pods
// are to be looked at again.
func (h *Healer) healAll(ctx context.Context, pods []stuck.Pod) {
	slices.SortStableFunc(pods,
		func(a, b stuck.Pod) int { return cmp.Compare(number(b.Sure), number(a.Sure)) })
	for began := time.Now(); len(pods) > 0 && time.Since(began) < stuck.Interval; pods = pods[1:] {
		if waiting := h.requests.waiting(time.Now()); waiting > maxWaiting {
			h.Logger.Info("nothing is deleted while many requests wait for their answer",
				"requests", waiting, "stuckPods", len(pods))
			return
		}
		err := h.heal(ctx, pods[0])
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			h.Observer.Failed()
			h.Logger.Error("a stuck pod could not be deleted; it is tried again",
				"pod", nameOf(pods[0]), "error", err)
		}
	}
}

func nameOf(pod stuck.Pod) string { return pod.Namespace + "/" + pod.Name }

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// heal deletes a pod if that is due. It waits for the budget.
func (h *Healer) heal(ctx context.Context, found stuck.Pod) error {
	if found.Owner == nil || !h.history.allows(found, time.Now()) {
		return nil
	}
	if err := h.budget.Wait(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pod, verdict, err := h.judgeAgain(ctx, found)
	if err != nil || !verdict.Stuck || verdict.Sure != found.Sure {
		return err // what has changed is left to the next look
	}
	return h.delete(ctx, pod, verdict)
}

// judgeAgain reads the pod from the API server itself. A pod that is gone is not stuck, nor is
// another of its name: the answers are not to its requests.
func (h *Healer) judgeAgain(ctx context.Context,
	found stuck.Pod) (*corev1.Pod, stuck.Verdict, error) {
	pod, err := h.Client.Pods(found.Namespace).Get(ctx, found.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, stuck.Verdict{}, nil
	}
	if err != nil {
		return nil, stuck.Verdict{}, fmt.Errorf("read the pod: %w", err)
	}
	verdict := stuck.Judge(pod, h.answers.Of(found.UID), time.Now())
	verdict.Stuck = verdict.Stuck && metav1.GetControllerOf(pod) != nil
	return pod, verdict, nil
}

// delete deletes the pod as it was read. A pod that has changed since is left to the next look.
func (h *Healer) delete(ctx context.Context, pod *corev1.Pod, verdict stuck.Verdict) error {
	owner := metav1.GetControllerOf(pod)
	err := h.Client.Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &pod.UID, ResourceVersion: &pod.ResourceVersion},
	})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete the pod: %w", err)
	}
	h.history.add(place{owner.UID, pod.Spec.NodeName}, pod.CreationTimestamp.Time, time.Now())
	h.Observer.Deleted(verdict.Sure)
	h.Logger.Warn("deleted a stuck pod, so that its controller makes another, which asks again",
		"pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID, "owner", owner.Kind+" "+owner.Name,
		"node", pod.Spec.NodeName, "sure", verdict.Sure, "evidence", verdict.Why)
	h.events.Event(pod, corev1.EventTypeWarning, reasonDeleted,
		"deleted, so that another pod asks again; this one ran without its certificate: "+
			verdict.Why)
	return nil
}

// tellOwnerless puts an event on a pod that nothing would make again.
func (h *Healer) tellOwnerless(found stuck.Pod) {
	pod := &corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: found.Namespace, Name: found.Name,
		UID: types.UID(found.UID),
	}
	h.events.Event(pod, corev1.EventTypeWarning, reasonNoOwner,
		"not deleted, since no controller would make it again; it runs without its certificate: "+
			found.Why)
}
