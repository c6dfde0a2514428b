package heal

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var (
	now   = time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)
	owner = &metav1.OwnerReference{Kind: "DaemonSet", Name: "calico-node", UID: "set-1"}
	other = &metav1.OwnerReference{Kind: "DaemonSet", Name: "calico-node", UID: "set-2"}
)

// Without strong evidence there is one deletion for each owner and node in ten minutes.
func TestWeakEvidence(t *testing.T) {
	h := history{}
	created := now.Add(-time.Hour)
	if !h.allows(owner, "node-1", created, false, now) {
		t.Fatal("the first is not allowed")
	}
	h.add(owner, "node-1", created, now)
	for name, c := range map[string]struct {
		owner *metav1.OwnerReference
		node  string
		after time.Duration
		want  bool
	}{
		"at once":            {owner, "node-1", 0, false},
		"after nine minutes": {owner, "node-1", 9 * time.Minute, false},
		"on another node":    {owner, "node-2", 0, true},
		"of another owner":   {other, "node-1", 0, true},
		"after ten minutes":  {owner, "node-1", 10 * time.Minute, true},
	} {
		copied := history{place{owner.UID, "node-1"}: h[place{owner.UID, "node-1"}]}
		if got := copied.allows(c.owner, c.node, created, false, now.Add(c.after)); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// With strong evidence a pod and its next five successors are deleted at once. The sixth waits.
func TestStrongEvidenceIsBounded(t *testing.T) {
	h, at := history{}, now
	created := now.Add(-time.Hour)
	deleted := 0
	for h.allows(owner, "node-1", created, true, at) && deleted < 100 {
		h.add(owner, "node-1", created, at)
		deleted++
		created, at = at.Add(time.Second), at.Add(70*time.Second)
	}
	if deleted != 1+maxRepeats {
		t.Errorf("%d pods in a row were deleted", deleted)
	}
	if !h.allows(owner, "node-1", created, true, at.Add(pause)) {
		t.Error("after ten minutes it is not allowed again")
	}
}

// Pods that were there before the first deletion are no successors, however many one node has.
func TestManyPodsOfOneNode(t *testing.T) {
	h := history{}
	for n := range 300 {
		at := now.Add(time.Duration(n) * time.Second)
		if !h.allows(owner, "node-1", now.Add(-time.Hour), true, at) {
			t.Fatalf("pod %d is not allowed", n)
		}
		h.add(owner, "node-1", now.Add(-time.Hour), at)
	}
}

// What is older than ten minutes is forgotten.
func TestHistoryIsBounded(t *testing.T) {
	h := history{}
	h.add(owner, "node-1", now, now)
	if h.forget(now.Add(pause)); len(h) != 0 {
		t.Errorf("%v", h)
	}
}
