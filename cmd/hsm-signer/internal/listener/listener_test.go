package listener

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"hsm-signer/internal/must"
)

// A fakeListener returns connections from the addresses that it is given.
type fakeListener struct {
	net.Listener
	from chan string
}

func (l fakeListener) Accept() (net.Conn, error) {
	return &fakeConn{from: <-l.from}, nil
}

type fakeConn struct {
	net.Conn
	from   string
	closed bool
}

func (c *fakeConn) Close() error { c.closed = true; return nil }

func (c *fakeConn) RemoteAddr() net.Addr {
	address, err := net.ResolveTCPAddr("tcp", net.JoinHostPort(c.from, "1"))
	if err != nil {
		panic(err)
	}
	return address
}

// Which connections are closed when there are too many.
func TestTheOldestOfTheHeaviestSourceIsClosed(t *testing.T) {
	for name, c := range map[string]struct {
		from   []string
		closed []int // by their place in from
	}{
		"few": {[]string{"10.0.0.1", "10.0.0.1", "10.0.0.2"}, nil},
		"many of one": {[]string{"10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.1",
			"10.0.0.1"}, []int{0}},
		"many of one, more": {[]string{"10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.1",
			"10.0.0.1"}, []int{0, 1}},
		"many in all": {[]string{"10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.2",
			"10.0.0.3", "10.0.0.4"}, []int{1}},
		"one each": {[]string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4",
			"10.0.0.5", "10.0.0.6"}, []int{0}},
		"one IPv6 network": {[]string{"2001:db8::1", "2001:db8::2", "2001:db8::3",
			"2001:db8::4"}, []int{0}},
		"several IPv6 networks": {[]string{"2001:db8:0:1::1", "2001:db8:0:2::1",
			"2001:db8:0:3::1", "2001:db8:0:4::1"}, nil},
		"IPv4 mapped into IPv6": {[]string{"::ffff:10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.1"},
			[]int{0}},
		"a mapped address is one": {[]string{"::ffff:10.0.0.1", "::ffff:10.0.0.2",
			"::ffff:10.0.0.3", "::ffff:10.0.0.4"}, nil},
	} {
		from := make(chan string, len(c.from))
		l := Limit(fakeListener{from: from}, Limits{Connections: 5, PerSource: 3})
		var all []net.Conn
		for _, address := range c.from {
			from <- address
			accepted, err := l.Accept()
			must.OK(t, err)
			all = append(all, accepted)
		}
		var closed []int
		for i, accepted := range all {
			if accepted.(*connection).Conn.(*fakeConn).closed {
				closed = append(closed, i)
			}
		}
		if !slices.Equal(closed, c.closed) {
			t.Errorf("%s: closed %v; want %v", name, closed, c.closed)
		}
		for _, accepted := range all {
			_ = accepted.Close()
			_ = accepted.Close() // net/http closes some twice
		}
		if l := l.(*limited); l.total != 0 || len(l.open) != 0 {
			t.Errorf("%s: after all were closed, %d of %d sources remain", name, l.total,
				len(l.open))
		}
	}
}

// However many connections read nothing, from the very address that the probe comes from, few of
// them stay open, and the probe is answered.
func TestSlowReadersDoNotKeepOutAProbe(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez",
		func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	mux.Handle("GET /metrics",
		DefaultInFlight.Guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(bytes.Repeat([]byte("x"), 8<<20)) // more than the kernel buffers
		})))
	inner, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must.OK(t, err)
	limits := Limits{Connections: 8, PerSource: 4}
	l := Limit(inner, limits).(*limited)
	server := NewServer(mux)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	for range 100 {
		slow, err := net.Dial("tcp", inner.Addr().String())
		must.OK(t, err)
		t.Cleanup(func() { _ = slow.Close() })
		fmt.Fprintf(slow, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
	}
	probe := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range 10 {
		response, err := probe.Get("http://" + inner.Addr().String() + "/livez")
		must.OK(t, err)
		text, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || string(text) != "ok" {
			t.Errorf("%q, %v", text, err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total > limits.PerSource+1 { // one is closed after it is added
		t.Errorf("%d connections are open; want %d at most", l.total, limits.PerSource+1)
	}
}

// Every wait for a caller ends.
func TestTheServerWaitsForNobody(t *testing.T) {
	s := NewServer(nil)
	if s.ReadHeaderTimeout <= 0 || s.ReadTimeout <= 0 || s.WriteTimeout <= 0 ||
		s.MaxHeaderBytes <= 0 || s.MaxHeaderBytes > 64<<10 {
		t.Errorf("%+v", s)
	}
}

// A new connection is not closed before its time for as many others of its source, only for too
// many in all.
func TestNewConnectionsHaveAGrace(t *testing.T) {
	from := make(chan string, 10)
	l := Limit(fakeListener{from: from},
		Limits{Connections: 4, PerSource: 1, Grace: time.Hour}).(*limited)
	var all []*connection
	for range 5 {
		from <- "10.0.0.1"
		accepted, err := l.Accept()
		must.OK(t, err)
		all = append(all, accepted.(*connection))
	}
	if !all[0].Conn.(*fakeConn).closed || all[1].Conn.(*fakeConn).closed {
		t.Error("of 5 new connections where 4 may be open, the oldest is not the only one to " +
			"be closed")
	}
	all[2].since = all[2].since.Add(-2 * time.Hour)
	all[1].since = all[1].since.Add(-2 * time.Hour)
	l.limits.Connections = 10
	from <- "10.0.0.1"
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, true, true, false, false} {
		if got := all[i].Conn.(*fakeConn).closed; got != want {
			t.Errorf("connection %d is closed: %t", i, got)
		}
	}
}

// A writer asks for another response while its own is being sent.
type writer struct {
	*httptest.ResponseRecorder
	sending func()
}

func (w writer) Write(data []byte) (int, error) {
	if w.Code == http.StatusOK {
		w.sending()
	}
	return w.ResponseRecorder.Write(data)
}

// Requests beyond the bounds are refused, and those of other sources are not.
func TestRequestsInFlight(t *testing.T) {
	handler := InFlight{Total: 3,
		PerSource: 2}.Guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "text")
	}))
	ask := func(from string, sending func()) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = net.JoinHostPort(from, "1")
		handler.ServeHTTP(writer{httptest.NewRecorder(), sending}, r)
	}
	reached := map[string]int{}
	count := func(name string) func() { return func() { reached[name]++ } }
	for range 2 { // the second time all places are free again
		ask("10.0.0.1", func() {
			ask("10.0.0.1", func() {
				ask("10.0.0.1", count("a third of one source"))
				ask("2001:db8::1", func() {
					reached["a third of another source"]++
					ask("10.0.0.3", count("a fourth"))
				})
			})
		})
	}
	if want := map[string]int{"a third of another source": 2}; !maps.Equal(reached, want) {
		t.Errorf("%v; want %v", reached, want)
	}
}

// One response is made at a time; a caller who leaves is not waited for; a panic frees the place.
func TestOneAtATime(t *testing.T) {
	entered, goOn := make(chan bool), make(chan bool)
	handler := DefaultInFlight.Guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- true
		<-goOn
		if r.URL.Path == "/panic" {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("X-Test", "set")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprint(w, "text")
	}))
	first, second := httptest.NewRecorder(), httptest.NewRecorder()
	done := make(chan bool)
	serve := func(w http.ResponseWriter, path string) {
		go func() {
			defer func() { _ = recover(); done <- true }()
			handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		}()
	}
	serve(first, "/panic")
	<-entered

	left, cancel := context.WithCancel(t.Context())
	cancel()
	gone := httptest.NewRecorder()
	handler.ServeHTTP(gone, httptest.NewRequest(http.MethodGet, "/", nil).WithContext(left))
	if gone.Body.Len() != 0 {
		t.Errorf("who has left got %q", gone.Body)
	}

	serve(second, "/")
	goOn <- true
	<-done // the first
	<-entered
	goOn <- true
	<-done
	if second.Code != http.StatusTeapot || second.Body.String() != "text" ||
		second.Header().Get("X-Test") != "set" {
		t.Errorf("%d %q", second.Code, second.Body)
	}
}
