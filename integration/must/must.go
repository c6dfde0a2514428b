// Package must ends a test or a benchmark at once if a precondition does not hold.
package must

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	pollInterval = 20 * time.Millisecond
	timeout      = 5 * time.Minute // only a broken program takes longer, also on a slow machine
)

// OK fails the test now if err is not nil.
func OK(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Eventually waits until the condition holds, and fails the test if the condition returns an error
// or does not hold within five minutes. what completes the sentence "waiting for …".
func Eventually(t testing.TB, what string, condition wait.ConditionWithContextFunc) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), pollInterval, timeout, true, condition)
	if err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
}
