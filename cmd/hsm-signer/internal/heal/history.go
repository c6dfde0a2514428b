package heal

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"hsm-signer/cmd/hsm-signer/internal/stuck"
)

// maxRepeats is how many successors in a row are deleted at once on strong evidence. Without a
// bound, a node whose clock is wrong could have its pods deleted forever.
const maxRepeats = 5

// A place is where a controller makes one pod again and again: a DaemonSet has one pod on each
// node.
type place struct {
	owner types.UID
	node  string
}

// A deletion is one of the last [pause].
type deletion struct {
	at     time.Time
	repeat int // how many pods before this one were deleted in a row
}

// history holds the last deletions of each place. It is not safe for concurrent use.
type history map[place][]deletion

// allows reports whether a stuck pod, which has an owner, may be deleted now.
func (h history) allows(pod stuck.Pod, now time.Time) bool {
	h.forget(now)
	last := h[place{pod.Owner.UID, pod.Node}]
	return len(last) == 0 || pod.Sure && repeats(last, pod.Created) <= maxRepeats
}

// add notes the deletion of a pod that was created at a time.
func (h history) add(at place, created, now time.Time) {
	h[at] = append(h[at], deletion{now, repeats(h[at], created)})
}

// repeats returns how many pods were deleted in a row before the one that was created at that time.
// The API says that time in whole seconds.
func repeats(last []deletion, created time.Time) (n int) {
	for _, d := range last {
		if !created.Before(d.at.Truncate(time.Second)) {
			n = max(n, d.repeat+1)
		}
	}
	return n
}

// forget drops the deletions that no longer count.
func (h history) forget(now time.Time) {
	for at, all := range h {
		all = slices.DeleteFunc(all, func(d deletion) bool { return now.Sub(d.at) >= pause })
		if h[at] = all; len(all) == 0 {
			delete(h, at)
		}
	}
}
