package load

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// A client repeats a request that a busy API server refuses, up to ten times.
func TestClientRepeatsWhatABusyServerRefuses(t *testing.T) {
	for _, test := range []struct {
		refusals, code int
		retryAfter     string
		want, calls    int
	}{
		{0, 0, "", http.StatusCreated, 1},
		{2, http.StatusTooManyRequests, "0", http.StatusCreated, 3},
		{1, http.StatusServiceUnavailable, "0", http.StatusCreated, 2},
		{1, http.StatusServiceUnavailable, "", http.StatusServiceUnavailable, 1},
		{1, http.StatusConflict, "0", http.StatusConflict, 1},
		{20, http.StatusTooManyRequests, "0", http.StatusTooManyRequests, 11},
	} {
		calls := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if calls++; calls > test.refusals {
				w.WriteHeader(http.StatusCreated)
				return
			}
			if test.retryAfter != "" {
				w.Header().Set("Retry-After", test.retryAfter)
			}
			w.WriteHeader(test.code)
		}))
		c := &client{host: server.URL, http: server.Client()}
		code, err := c.call(t.Context(), http.MethodPost, "/", nil)
		server.Close()
		if code != test.want || calls != test.calls ||
			(err == nil) != (code == http.StatusCreated) {
			t.Errorf("%+v: status %d after %d calls, %v", test, code, calls, err)
		}
	}
}
