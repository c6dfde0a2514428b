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

func TestAnErrorIsNewsOnce(t *testing.T) {
	for _, c := range []struct {
		err, before error
		want        bool
	}{
		{nil, nil, false},
		{errors.New("a"), nil, true},
		{errors.New("a"), errors.New("a"), false},
		{errors.New("b"), errors.New("a"), true},
		{nil, errors.New("a"), false},
	} {
		if IsNews(c.err, c.before) != c.want {
			t.Errorf("%v after %v is news: %t", c.err, c.before, !c.want)
		}
	}
}
