package stuck

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/kube"
	"hsm-signer/kube/clientset"
	"hsm-signer/policy"
)

// remembered is how long the answers to a pod's requests are kept after the last of them, or after
// the pod was last stuck: between two runs of a crash loop it is not.
const remembered = time.Hour

// A Pod is one that is stuck.
type Pod struct {
	Namespace, Name, UID string
	Created              time.Time
	Node                 string
	// its controller; nil if nothing makes the pod again
	Owner *metav1.OwnerReference
	Verdict
}

func podOf(pod *corev1.Pod, v Verdict) Pod {
	return Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID),
		Created: pod.CreationTimestamp.Time,
		Node:    pod.Spec.NodeName, Owner: metav1.GetControllerOf(pod), Verdict: v,
	}
}

// Delete returns the kubectl command that deletes the pod, so that its controller makes another.
func (p Pod) Delete() string {
	return fmt.Sprintf("kubectl -n %s delete pod %s", p.Namespace,
		p.Name)
}

// Answers are the latest answers, of pods that may get stuck or are. They are safe for concurrent
// use.
type Answers struct {
	mu    sync.Mutex
	byPod map[string]*openPod // by UID
}

// An openPod is one of which it is not known yet whether it works.
type openPod struct {
	namespace string
	answers   []Answer
	last      time.Time // when an answer was added, or the pod was stuck
	due       time.Time // when it is worth reading for the first time
}

// NewAnswers returns no answers yet.
func NewAnswers() *Answers { return &Answers{byPod: map[string]*openPod{}} }

// AnswerTo returns the answer to a request. It returns false if no pod made the request, or if the
// requester's token does not name it.
func AnswerTo(requester policy.Requester, request string, asked, earliest time.Time) (Answer,
	bool) {
	account, ok := requester.ServiceAccount()
	_, pod, bound := requester.BoundPod()
	return Answer{request, account.Namespace, pod, asked, earliest}, ok && bound
}

// Add adds an answer. It does nothing if the answer to that request was added before.
//
// A pod is not stuck before its main containers have failed for a while, so there is nothing to see
// for as long after its first answer.
func (a *Answers) Add(answer Answer, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	pod := a.byPod[answer.Pod]
	if pod == nil {
		answered := answer.Earliest
		if answered.IsZero() {
			answered = now
		}
		pod = &openPod{namespace: answer.Namespace, due: answered.Add(quiet)}
		a.byPod[answer.Pod] = pod
	}
	same := func(other Answer) bool { return other.Request == answer.Request }
	if !slices.ContainsFunc(pod.answers, same) {
		pod.answers, pod.last = append(pod.answers, answer), now
	}
}

// Due reports whether a pod may be stuck by now. Until then [Answers.Look] would read all pods of a
// namespace without a result, and during a storm more than once.
func (a *Answers) Due(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, pod := range a.byPod {
		if !now.Before(pod.due) {
			return true
		}
	}
	return false
}

// Of returns the answers to the requests of a pod.
func (a *Answers) Of(uid string) []Answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if pod := a.byPod[uid]; pod != nil {
		return slices.Clone(pod.answers)
	}
	return nil
}

// Look reads the pods that were answered, and returns those that are stuck, sorted by name. It
// forgets the answers of pods that are settled or gone. On an error it returns the stuck pods of
// the namespaces that could be read.
func (a *Answers) Look(ctx context.Context, client clientset.Interface,
	now time.Time) ([]Pod, error) {
	var all []Pod
	var faults []error
	for namespace, uids := range a.open() {
		found, err := a.lookAt(ctx, client, namespace, uids, now)
		all = append(all, found...)
		faults = append(faults, err)
	}
	slices.SortFunc(all, byName)
	return all, errors.Join(faults...)
}

func byName(a, b Pod) int {
	return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
}

// open returns the UIDs of the pods by namespace.
func (a *Answers) open() map[string]map[string]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	open := map[string]map[string]bool{}
	for uid, pod := range a.byPod {
		if open[pod.namespace] == nil {
			open[pod.namespace] = map[string]bool{}
		}
		open[pod.namespace][uid] = true
	}
	return open
}

// lookAt reads the pods of a namespace, and judges those with the UIDs.
func (a *Answers) lookAt(ctx context.Context, client clientset.Interface, namespace string,
	uids map[string]bool, now time.Time) (stuck []Pod, err error) {
	gone := maps.Clone(uids)
	err = kube.EachPod(ctx, client, namespace, func(pod *corev1.Pod) error {
		uid := string(pod.UID)
		if !uids[uid] {
			return nil
		}
		delete(gone, uid)
		verdict := Judge(pod, a.Of(uid), now)
		a.note(uid, verdict, now)
		if verdict.Stuck {
			stuck = append(stuck, podOf(pod, verdict))
		}
		return nil
	})
	if err != nil {
		return stuck, err
	}
	for uid := range gone {
		a.note(uid, Verdict{Settled: true}, now)
	}
	return stuck, nil
}

// note keeps the verdict on a pod, and forgets the pod if there is nothing more to see.
func (a *Answers) note(uid string, v Verdict, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	pod := a.byPod[uid]
	if pod == nil {
		return
	}
	if v.Stuck {
		pod.last = now
	}
	if v.Settled || now.Sub(pod.last) > remembered {
		delete(a.byPod, uid)
	}
}
