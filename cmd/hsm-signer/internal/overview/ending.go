package overview

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/status"
	"hsm-signer/kube"
)

// endingOf puts the pods of one workload together, the earliest first.
func endingOf(pods []expiry.Endangered, now time.Time) []status.Ending {
	byCommand := map[string]int{}
	var all []status.Ending
	for _, e := range pods {
		restart := e.Pod.Restart()
		i, known := byCommand[restart]
		if !known {
			i = len(all)
			byCommand[restart] = i
			all = append(all,
				status.Ending{Workload: ownerOf(e.Pod), First: e.NotAfter, Restart: restart})
		}
		if name := e.Pod.Namespace + "/" + e.Pod.Name; !slices.Contains(all[i].Pods, name) {
			all[i].Pods = append(all[i].Pods, name)
			if e.Ended(now) { // its first certificate to end comes first
				all[i].Dark++
			}
		}
		all[i].First = earlier(all[i].First, e.NotAfter)
	}
	slices.SortStableFunc(all, func(a, b status.Ending) int {
		return cmp.Or(a.First.Compare(b.First), strings.Compare(a.Workload, b.Workload))
	})
	return all
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// ownerOf says in words what a pod is restarted by.
func ownerOf(pod kube.LivePod) string {
	if pod.Owner.Kind == "" {
		return "nothing makes it again"
	}
	return pod.Owner.Kind + " " + pod.Owner.Namespace + "/" + pod.Owner.Name
}
