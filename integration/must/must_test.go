package must_test

import (
	"errors"
	"testing"

	"hsm-signer/integration/must"
)

// A recorder notes that a test would have ended.
type recorder struct {
	testing.TB
	ended bool
}

func (r *recorder) Fatal(...any) { r.ended = true }

func TestGetEndsATestWithAnError(t *testing.T) {
	for _, err := range []error{nil, errors.New("wrong")} {
		r := &recorder{TB: t}
		if got := must.Get("value", err)(r); got != "value" || r.ended != (err != nil) {
			t.Errorf("with the error %v: %q, ended: %t", err, got, r.ended)
		}
	}
}
