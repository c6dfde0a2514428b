package heal

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/cmd/hsm-signer/internal/stuck"
)

var (
	now  = time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)
	here = place{"set-1", "node-1"}
)

// podAt is a stuck pod.
func podAt(at place, created time.Time, sure bool) stuck.Pod {
	return stuck.Pod{Owner: &metav1.OwnerReference{UID: at.owner}, Node: at.node, Created: created,
		Verdict: stuck.Verdict{Stuck: true, Sure: sure}}
}

// Without strong evidence there is one deletion for each owner and node in ten minutes.
func TestWeakEvidence(t *testing.T) {
	h := history{}
	created := now.Add(-time.Hour)
	if !h.allows(podAt(here, created, false), now) {
		t.Fatal("the first is not allowed")
	}
	h.add(here, created, now)
	for name, c := range map[string]struct {
		at    place
		after time.Duration
		want  bool
	}{
		"at once":            {here, 0, false},
		"after nine minutes": {here, 9 * time.Minute, false},
		"on another node":    {place{"set-1", "node-2"}, 0, true},
		"of another owner":   {place{"set-2", "node-1"}, 0, true},
		"after ten minutes":  {here, 10 * time.Minute, true},
	} {
		copied := history{here: slices.Clone(h[here])}
		if got := copied.allows(podAt(c.at, created, false), now.Add(c.after)); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// With strong evidence a pod and its next five successors are deleted at once. The sixth waits.
func TestStrongEvidenceIsBounded(t *testing.T) {
	h, at := history{}, now
	created := now.Add(-time.Hour)
	deleted := 0
	for h.allows(podAt(here, created, true), at) && deleted < 100 {
		h.add(here, created, at)
		deleted++
		created, at = at.Add(time.Second), at.Add(70*time.Second)
	}
	if deleted != 1+maxRepeats {
		t.Errorf("%d pods in a row were deleted", deleted)
	}
	if !h.allows(podAt(here, created, true), at.Add(pause)) {
		t.Error("after ten minutes it is not allowed again")
	}
}

// Pods that were there before the first deletion are no successors, however many one node has.
func TestManyPodsOfOneNode(t *testing.T) {
	h := history{}
	for n := range 300 {
		at := now.Add(time.Duration(n) * time.Second)
		if !h.allows(podAt(here, now.Add(-time.Hour), true), at) {
			t.Fatalf("pod %d is not allowed", n)
		}
		h.add(here, now.Add(-time.Hour), at)
	}
}

// What is older than ten minutes is forgotten.
func TestHistoryIsBounded(t *testing.T) {
	h := history{}
	h.add(here, now, now)
	if h.forget(now.Add(pause)); len(h) != 0 {
		t.Errorf("%v", h)
	}
}
