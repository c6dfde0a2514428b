package hsm

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// hangOn makes attempts in which a call hangs, each as soon as one may, and returns after how many and how long one gave
// up, or that one did not within an hour.
func hangOn(k *Key, early error) (attempts int, took time.Duration, gaveUp bool) {
	began := time.Now()
	for time.Since(began) < time.Hour {
		attempts++
		k.counts.hanging.Add(1)
		if errors.Is(k.tried(unavailable(&abandonedError{"C_Sign", k.config.Timeout, early}, "sign")), ErrHung) {
			return attempts, time.Since(began), true
		}
		<-time.After(time.Until(k.notYet))
	}
	return attempts, time.Since(began), false
}

// A call that was cut off, since all together took too long, might have come back: the module does not hang.
func TestSlowIsNotHung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if attempts, took, gaveUp := hangOn(&Key{}, errSlow); gaveUp {
			t.Errorf("one gave up after %d attempts and %s", attempts, took)
		}
	})
}
