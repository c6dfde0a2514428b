package poll

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestEveryCallsAtOnceAndAtEachInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		started, calls := time.Now(), 0
		err := Every(ctx, time.Minute, func(context.Context) {
			if time.Since(started) != time.Duration(calls)*time.Minute {
				t.Errorf("call %d after %s", calls, time.Since(started))
			}
			if calls++; calls == 3 {
				cancel()
			}
		})
		if err != nil || calls != 3 {
			t.Errorf("%d calls: %v", calls, err)
		}
	})
}

// Each call says when the next one starts. A call that takes longer is followed at once, a closed
// channel ends one wait, and an error ends all.
func TestRepeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		started, wake, fault := time.Now(), make(chan struct{}), errors.New("fault")
		var calls []time.Duration
		err := Repeat(t.Context(), wake, func(context.Context) (time.Duration, error) {
			calls = append(calls, time.Since(started))
			switch len(calls) {
			case 1:
				return time.Second, nil
			case 2:
				<-time.After(3 * time.Second) // the call takes longer than the wait
				return 2 * time.Second, nil
			case 3:
				close(wake)
				return time.Hour, nil
			case 4:
				return time.Minute, nil
			}
			return 0, fault
		})
		want := []time.Duration{0, time.Second, 4 * time.Second, 4 * time.Second, 64 * time.Second}
		if !errors.Is(err, fault) || len(calls) != len(want) {
			t.Fatalf("calls at %v, then %v", calls, err)
		}
		for i := range want {
			if calls[i] != want[i] {
				t.Errorf("calls at %v; want %v", calls, want)
			}
		}
	})
}

func TestAFaultIsNewsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f Fault
		started := time.Now()
		for n, c := range []struct {
			err   error
			want  Change
			since int // the step in which the fault came; -1: there is none
		}{
			{nil, Same, -1},
			{errors.New("a"), Fails, 1},
			{errors.New("a"), Same, 1},
			{errors.New("b"), Fails, 1},
			{nil, Works, -1},
			{nil, Same, -1},
			{errors.New("b"), Fails, 6},
		} {
			since := time.Time{}
			if c.since >= 0 {
				since = started.Add(time.Duration(c.since) * time.Second)
			}
			if got := f.Note(c.err); got != c.want || f.Err() != c.err || !f.Since().Equal(since) {
				t.Errorf("step %d: %v; %v since %s, want %v and %s", n, got, f.Err(), f.Since(),
					c.want, since)
			}
			<-time.After(time.Second) // of the bubble's own clock
		}
	})
}
