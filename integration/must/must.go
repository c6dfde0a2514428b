// Package must ends a test or a benchmark at once if a precondition does not hold.
package must

import (
	"strings"
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

// Get returns a function that returns the value, or fails the test now if err is not nil. Call both
// in one expression: must.Get(os.ReadFile(name))(t).
func Get[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		OK(t, err)
		return value
	}
}

// Setenv sets variables, each as NAME=VALUE, until the end of the test.
func Setenv(t testing.TB, variables ...string) {
	t.Helper()
	for _, variable := range variables {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
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
