package faultproxy

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A Fault is what becomes of one call, in the place of its being passed on; forward passes it on.
type Fault func(w http.ResponseWriter, r *http.Request, forward http.Handler)

// Answer answers with that HTTP status, in the form that the API server has, and passes nothing on.
func Answer(code int) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "application/json")
		if code == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", "1") // seconds, as the API server's flow control says
		}
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(status(code)) // a caller that has gone needs no answer
	}
}

func status(code int) *metav1.Status {
	reasons := map[int]metav1.StatusReason{
		http.StatusConflict: metav1.StatusReasonConflict, http.StatusGone: metav1.StatusReasonExpired,
		http.StatusTooManyRequests: metav1.StatusReasonTooManyRequests, http.StatusInternalServerError: metav1.StatusReasonInternalError,
		http.StatusServiceUnavailable: metav1.StatusReasonServiceUnavailable,
	}
	return &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reasons[code], Message: "the weather is bad",
	}
}

// Expire lets a watch begin, and tells at once that its resourceVersion is too old (410 Gone).
func Expire(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"type": "ERROR", "object": status(http.StatusGone)}) // a caller that has gone needs no answer
}

// Reset ends the call without an answer before it is passed on.
func Reset(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// LoseAnswer passes the call on, and ends it without an answer when it is done: what was to be written is
// written, and who wrote it does not hear of it. The function is told the HTTP status that was lost.
func LoseAnswer(lost func(code int)) Fault {
	return func(_ http.ResponseWriter, r *http.Request, forward http.Handler) {
		answer := httptest.NewRecorder()
		forward.ServeHTTP(answer, r)
		lost(answer.Code)
		panic(http.ErrAbortHandler)
	}
}

// Before calls the function, and then ends the call without passing it on.
func Before(do func()) Fault {
	return func(http.ResponseWriter, *http.Request, http.Handler) {
		do()
		panic(http.ErrAbortHandler)
	}
}

// Some lets that share of all calls, 0 to 1, meet one of the faults, at random.
func Some(share float64, faults ...Fault) Sky {
	return func(*http.Request) Fault {
		if rand.Float64() >= share {
			return nil
		}
		return faults[rand.IntN(len(faults))]
	}
}

// IsWatch tells whether the call is a watch.
func IsWatch(r *http.Request) bool {
	return r.Method == http.MethodGet && r.URL.Query().Get("watch") == "true"
}

// Writes tells whether the call updates that subresource of a certificate request, such as approval or
// status.
func Writes(r *http.Request, subresource string) bool {
	return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/certificatesigningrequests/") && strings.HasSuffix(r.URL.Path, "/"+subresource)
}
