package faultproxy

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A Fault handles one call. forward passes the call on to the API server.
type Fault func(w http.ResponseWriter, r *http.Request, forward http.Handler)

// Answer returns that HTTP status, in the API server's format, and does not pass the call on.
func Answer(code int) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "application/json")
		if code == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", "1") // seconds, as the API server's flow control sends
		}
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(status(code)) // an error means that the client has gone
	}
}

func status(code int) *metav1.Status {
	reasons := map[int]metav1.StatusReason{
		http.StatusConflict:            metav1.StatusReasonConflict,
		http.StatusGone:                metav1.StatusReasonExpired,
		http.StatusTooManyRequests:     metav1.StatusReasonTooManyRequests,
		http.StatusInternalServerError: metav1.StatusReasonInternalError,
		http.StatusServiceUnavailable:  metav1.StatusReasonServiceUnavailable,
	}
	return &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reasons[code],
		Message: "injected fault",
	}
}

// Expire accepts a watch, and reports in its first event that its resourceVersion is too old (410
// Gone).
func Expire(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	w.Header().Set("Content-Type", "application/json")
	event := map[string]any{"type": "ERROR", "object": status(http.StatusGone)}
	_ = json.NewEncoder(w).Encode(event) // an error means that the client has gone
}

// Reset closes the connection without passing the call on.
func Reset(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// LoseAnswer passes the call on and drops the answer: the API server commits the write, and the
// client does not learn that. It calls lost with the HTTP status.
func LoseAnswer(lost func(code int)) Fault {
	return func(_ http.ResponseWriter, r *http.Request, forward http.Handler) {
		answer := httptest.NewRecorder()
		forward.ServeHTTP(answer, r)
		lost(answer.Code)
		panic(http.ErrAbortHandler)
	}
}

// Before calls the function and then closes the connection without passing the call on.
func Before(do func()) Fault {
	return func(http.ResponseWriter, *http.Request, http.Handler) {
		do()
		panic(http.ErrAbortHandler)
	}
}

// Some returns a Selector that injects one of the faults, chosen at random, into that share of the
// calls (0 to 1).
func Some(share float64, faults ...Fault) Selector {
	return func(*http.Request) Fault {
		if rand.Float64() >= share {
			return nil
		}
		return faults[rand.IntN(len(faults))]
	}
}

// IsWatch reports whether the call is a watch.
func IsWatch(r *http.Request) bool {
	return r.Method == http.MethodGet && r.URL.Query().Get("watch") == "true"
}

// Writes reports whether the call updates this subresource of a certificate request of either kind,
// such as approval or status.
func Writes(r *http.Request, subresource string) bool {
	ofRequest := strings.Contains(r.URL.Path, "/certificatesigningrequests/") ||
		strings.Contains(r.URL.Path, "/podcertificaterequests/")
	return r.Method == http.MethodPut && ofRequest && strings.HasSuffix(r.URL.Path, "/"+subresource)
}

// Body returns the body of a call, which can be passed on after that. What cannot be read is
// missing.
func Body(r *http.Request) []byte {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	return body
}
