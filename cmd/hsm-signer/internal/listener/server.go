package listener

import (
	"bytes"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// The times within which a caller must send its request, and read the response.
const (
	readTime  = 5 * time.Second
	writeTime = 10 * time.Second
)

// maxHeader is the most that is read of a request's header.
const maxHeader = 16 << 10

// NewServer returns a server that waits for no caller for long. It closes each connection after one
// response: probes and scrapers need no more.
func NewServer(handler http.Handler) *http.Server {
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: readTime, ReadTimeout: readTime,
		WriteTimeout: writeTime, MaxHeaderBytes: maxHeader,
	}
	server.SetKeepAlivesEnabled(false)
	return server
}

// InFlight bounds the requests to one handler that are being answered at once.
type InFlight struct {
	Total     int
	PerSource int
}

// DefaultInFlight is enough for every scraper, and little enough for slow readers of large
// responses.
var DefaultInFlight = InFlight{Total: 64, PerSource: 16}

// Guard returns a handler that keeps the bounds: a request beyond them gets the status 503. One
// response at a time is made, in memory, and then sent, so that a slow reader keeps nothing but the
// response.
func (f InFlight) Guard(handler http.Handler) http.Handler {
	var mu sync.Mutex
	total, perSource := 0, map[netip.Prefix]int{}
	enter := func(source netip.Prefix) bool {
		mu.Lock()
		defer mu.Unlock()
		if total >= f.Total || perSource[source] >= f.PerSource {
			return false
		}
		total++
		perSource[source]++
		return true
	}
	leave := func(source netip.Prefix) {
		mu.Lock()
		defer mu.Unlock()
		total--
		if perSource[source]--; perSource[source] == 0 {
			delete(perSource, source)
		}
	}
	respond := oneAtATime(handler)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		address, _ := netip.ParseAddrPort(r.RemoteAddr) // of another form: all are one source
		source := prefixOf(address.Addr())
		if !enter(source) {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "Too many requests are being answered: ask again later.",
				http.StatusServiceUnavailable)
			return
		}
		defer leave(source)
		if response := respond(w.Header(), r); response != nil {
			w.WriteHeader(response.code)
			_, _ = w.Write(response.body.Bytes()) // the caller may have left
		}
	})
}

// oneAtATime returns a function that makes the handler's response, one at a time. It returns nil if
// the caller leaves first.
func oneAtATime(handler http.Handler) func(http.Header, *http.Request) *buffered {
	slot := make(chan struct{}, 1)
	return func(header http.Header, r *http.Request) *buffered {
		select {
		case slot <- struct{}{}:
		case <-r.Context().Done():
			return nil
		}
		defer func() { <-slot }()
		response := &buffered{header: header, code: http.StatusOK}
		handler.ServeHTTP(response, r)
		return response
	}
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
