package stuck

import (
	"context"
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
	"hsm-signer/kube/clientset"
)

// answerIn returns what the journal knows of an answered request. It does not know when the request
// was created.
func answerIn(i *journal.Issued) (Answer, bool) {
	answer, ok := AnswerTo(i.Requester, i.UID, time.Time{}, i.SignedAt)
	return answer, ok && i.MayBeHeld() && !i.OfPod() // pods start only with their volumes
}

// A Found pod is stuck; the journal says what it got.
type Found struct {
	Pod
	Issued *journal.Issued // the last of its certificates
}

// Find returns the pods that are stuck now, sorted by name, by what the journal in dir has of all
// times. If the pods of a namespace cannot be read, it returns those of the others, and the error.
func Find(ctx context.Context, dir string, client clientset.Interface,
	now time.Time) ([]Found, error) {
	namespaces := map[string]bool{}
	for issued, err := range journal.List(dir, journal.Filter{}) {
		if err != nil {
			return nil, err
		}
		if answer, ok := answerIn(issued); ok {
			namespaces[answer.Namespace] = true
		}
	}
	suspects, fault := suspected(ctx, client, namespaces, now)
	found, err := confirm(dir, suspects, now)
	return found, errors.Join(fault, err)
}

// suspected returns the pods, by UID, that are stuck if they were answered.
func suspected(ctx context.Context, client clientset.Interface, namespaces map[string]bool,
	now time.Time) (map[string]*corev1.Pod, error) {
	suspects := map[string]*corev1.Pod{}
	var faults []error
	for namespace := range namespaces {
		faults = append(faults, kube.EachPod(ctx, client, namespace, func(pod *corev1.Pod) error {
			if _, verdict := judgeStatus(pod, now); verdict.Stuck {
				suspects[string(pod.UID)] = pod
			}
			return nil
		}))
	}
	return suspects, errors.Join(faults...)
}

// confirm returns those of the pods that were answered.
func confirm(dir string, suspects map[string]*corev1.Pod, now time.Time) ([]Found, error) {
	answers, last := map[string][]Answer{}, map[string]*journal.Issued{}
	for issued, err := range journal.List(dir, journal.Filter{}) {
		if err != nil {
			return nil, err
		}
		answer, ok := answerIn(issued)
		if !ok || suspects[answer.Pod] == nil {
			continue
		}
		answers[answer.Pod] = append(answers[answer.Pod], answer)
		if former := last[answer.Pod]; former == nil || issued.SignedAt.After(former.SignedAt) {
			last[answer.Pod] = issued
		}
	}
	var found []Found
	for uid, pod := range suspects {
		if verdict := Judge(pod, answers[uid], now); verdict.Stuck {
			found = append(found, Found{podOf(pod, verdict), last[uid]})
		}
	}
	slices.SortFunc(found, func(a, b Found) int { return byName(a.Pod, b.Pod) })
	return found, nil
}
