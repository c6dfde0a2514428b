// Package apiclock knows how far the clock of the API server is from that of this host.
//
// Duty: read the header Date of the API server's answers. The API server takes the certificate of a
// pod only if its notBefore is within five minutes of the API server's own clock.
//
// Contract: nothing is sent, and no answer is changed. An answer without the header says nothing.
package apiclock

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"time"
)

// most is how far the API server's clock may be ahead of ours, or behind it. A certificate is dated
// a minute back and may take a while to be published, and five minutes are the limit.
const most = 3 * time.Minute

// A Clock is safe for concurrent use. Its zero value knows nothing yet.
type Clock struct{ ahead atomic.Int64 } // in nanoseconds, in whole seconds

// Watch returns a transport that reads the time of each answer.
func (c *Clock) Watch(transport http.RoundTripper) http.RoundTripper {
	return watched{transport, c}
}

// Ahead returns how far the API server's clock is ahead of ours, in whole seconds; negative: it is
// behind. It is 0 while no answer had the time.
func (c *Clock) Ahead() time.Duration { return time.Duration(c.ahead.Load()) }

// Fault returns an error if the API server's clock is so far from ours that it would refuse the
// certificates of pods.
func (c *Clock) Fault() error {
	ahead := c.Ahead()
	if ahead.Abs() <= most {
		return nil
	}
	where := "ahead of"
	if ahead < 0 {
		where = "behind"
	}
	return fmt.Errorf("the clock of the API server is %s %s the clock of this host, and it would "+
		"refuse the certificates of pods: synchronize both clocks (NTP)", ahead.Abs(), where)
}

type watched struct {
	http.RoundTripper
	clock *Clock
}

// RoundTrip is [http.RoundTripper]'s.
func (w watched) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := w.RoundTripper.RoundTrip(r)
	if err != nil {
		return response, err
	}
	if date, err := http.ParseTime(response.Header.Get("Date")); err == nil {
		w.clock.ahead.Store(int64(time.Until(date).Truncate(time.Second)))
	}
	return response, nil
}
