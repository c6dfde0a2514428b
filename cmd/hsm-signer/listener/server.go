package listener

import (
	"bytes"
	"net/http"
	"time"
)

// The times within which a caller must send its request, and read the response.
const (
	readTime  = 5 * time.Second
	writeTime = 10 * time.Second
	idleTime  = time.Minute
)

// maxHeader is the most that is read of a request's header.
const maxHeader = 16 << 10

// NewServer returns a server that waits for no caller for long.
func NewServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler: handler, ReadHeaderTimeout: readTime, ReadTimeout: readTime,
		WriteTimeout: writeTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
	}
}

// OneAtATime returns a handler that makes one response at a time. Another request waits, until its
// caller leaves. A response is made in memory and then sent, so that a slow reader keeps nothing but
// the response.
func OneAtATime(handler http.Handler) http.Handler {
	slot := make(chan struct{}, 1)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case slot <- struct{}{}:
		case <-r.Context().Done():
			return
		}
		response := &buffered{header: w.Header(), code: http.StatusOK}
		func() {
			defer func() { <-slot }()
			handler.ServeHTTP(response, r)
		}()
		w.WriteHeader(response.code)
		_, _ = w.Write(response.body.Bytes()) // the caller may have left
	})
}

// buffered is a response in memory.
type buffered struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (b *buffered) Header() http.Header            { return b.header }
func (b *buffered) WriteHeader(code int)           { b.code = code }
func (b *buffered) Write(data []byte) (int, error) { return b.body.Write(data) }
