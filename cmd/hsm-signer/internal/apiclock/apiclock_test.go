package apiclock_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/apiclock"
)

// answering answers each request with a time.
type answering string

func (a answering) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{Header: http.Header{"Date": {string(a)}}}, nil
}

// A clock that is too far away is a fault until an answer shows that it is not.
func TestClockThatIsTooFarAway(t *testing.T) {
	for _, c := range []struct {
		ahead time.Duration
		says  string
	}{
		{0, ""}, {2 * time.Minute, ""}, {-2 * time.Minute, ""}, {4 * time.Minute, "ahead of"},
		{-4 * time.Minute, "behind"}, {30 * 24 * time.Hour, "ahead of"},
	} {
		var clock apiclock.Clock
		date := time.Now().Add(c.ahead).UTC().Format(http.TimeFormat)
		for _, header := range []string{date, "yesterday", ""} { // which say nothing
			if _, err := clock.Watch(answering(header)).RoundTrip(nil); err != nil {
				t.Fatal(err)
			}
		}
		err := clock.Fault()
		if (err != nil) != (c.says != "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.ahead, err)
		}
		if ahead := clock.Ahead(); (ahead > 0) != (c.ahead > 0) {
			t.Errorf("%s: it is ahead by %s", c.ahead, ahead)
		}
		now := time.Now().UTC().Format(http.TimeFormat)
		_, _ = clock.Watch(answering(now)).RoundTrip(nil)
		if err := clock.Fault(); err != nil {
			t.Errorf("%s, and right again: %v", c.ahead, err)
		}
	}
}
