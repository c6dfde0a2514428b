package faultproxy_test

import (
	"bufio"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"hsm-signer/integration/faultproxy"
	"hsm-signer/integration/must"
)

// A server counts the calls that reach it. A watch never ends; other calls are answered
// immediately.
type server struct {
	*httptest.Server
	reached atomic.Int64
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.reached.Add(1)
		_, _ = io.WriteString(w, "hello "+r.Header.Get("Authorization")+"\n")
		if faultproxy.IsWatch(r) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) config() *rest.Config {
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	return &rest.Config{Host: s.URL, BearerToken: "secret",
		TLSClientConfig: rest.TLSClientConfig{CAData: authority}}
}

// get returns the status and the first line of the answer.
func get(ctx context.Context, config *rest.Config, method, path string) (string, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return "", err
	}
	request, err := http.NewRequestWithContext(ctx, method, config.Host+path, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	line, err := bufio.NewReader(response.Body).ReadString('\n')
	return response.Status + " " + strings.TrimSpace(line), err
}

const (
	approval = "/apis/certificates.k8s.io/v1/certificatesigningrequests/one/approval"
	watching = "/apis/certificates.k8s.io/v1/certificatesigningrequests?watch=true"
	hello    = "200 OK hello Bearer secret"
)

func TestProxy(t *testing.T) {
	s := newServer(t)
	p := must.Get(faultproxy.NewProxy(s.config()))(t)
	t.Cleanup(p.Close)
	lost := 0
	for _, c := range []struct {
		name, method, path, want string
		fault                    faultproxy.Fault
		reaches                  int64
	}{
		{"no fault", http.MethodGet, "/", hello, nil, 1},
		{"an answer", http.MethodGet, "/",
			`429 Too Many Requests {"kind":"Status","apiVersion":"v1","metadata":{},` +
				`"status":"Failure","message":"injected fault","reason":"TooManyRequests",` +
				`"code":429}`, faultproxy.Answer(http.StatusTooManyRequests), 0},
		{"an expired watch", http.MethodGet, watching,
			`200 OK {"object":{"kind":"Status","apiVersion":"v1","metadata":{},` +
				`"status":"Failure","message":"injected fault","reason":"Expired","code":410},` +
				`"type":"ERROR"}`, faultproxy.Expire, 0},
		{"a reset", http.MethodPut, approval, "", faultproxy.Reset, 0},
		{"a lost answer", http.MethodPut, approval, "",
			faultproxy.LoseAnswer(func(code int) { lost = code }), 1},
		{"a call before which something is done", http.MethodPut, approval, "",
			faultproxy.Before(func() { lost++ }), 0},
	} {
		before := s.reached.Load()
		p.Set(func(*http.Request) faultproxy.Fault { return c.fault })
		got, err := get(t.Context(), p.Config("secret"), c.method, c.path)
		if got != c.want || (err != nil) != (c.want == "") || s.reached.Load()-before != c.reaches {
			t.Errorf("%s: %q, %v, and the server was reached %d times; want %q", c.name, got, err,
				s.reached.Load()-before, c.want)
		}
	}
	if lost != http.StatusOK+1 {
		t.Errorf("the status that was lost is %d", lost)
	}
}

func TestProxyGivesACallItsShareOfFaults(t *testing.T) {
	selector, faults := faultproxy.Some(0.3, faultproxy.Reset), 0
	for range 10_000 {
		if selector(nil) != nil {
			faults++
		}
	}
	if faults < 2500 || faults > 3500 {
		t.Errorf("%d of 10,000 calls meet a fault; want about 3,000", faults)
	}
}

func TestProxyCutsWatches(t *testing.T) {
	s := newServer(t)
	p := must.Get(faultproxy.NewProxy(s.config()))(t)
	t.Cleanup(p.Close)
	config := p.Config("secret")
	client := must.Get(rest.HTTPClientFor(config))(t)
	response := must.Get(client.Get(config.Host + watching))(t)
	defer response.Body.Close()
	reader := bufio.NewReader(response.Body)
	if line, err := reader.ReadString('\n'); err != nil || !strings.HasPrefix(line, "hello") {
		t.Fatalf("%q, %v", line, err)
	}
	if n := p.CutWatches(); n != 1 {
		t.Errorf("%d watches were cut; want 1", n)
	}
	if _, err := reader.ReadString('\n'); err == nil {
		t.Error("the watch continues")
	}
}

func TestLine(t *testing.T) {
	s := newServer(t)
	l := must.Get(faultproxy.NewLine(s.config()))(t)
	t.Cleanup(func() { must.OK(t, l.Close()) })
	config := l.Config(s.config())
	ask := func(patience time.Duration) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return get(ctx, config, http.MethodGet, "/")
	}
	requireHello := func() {
		t.Helper()
		if got, err := ask(time.Minute); got != hello {
			t.Errorf("%q, %v", got, err)
		}
	}
	requireHello()
	l.Delay(time.Millisecond)
	requireHello()
	l.Delay(0)
	l.Partition()
	if got, err := ask(100 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) &&
		!os.IsTimeout(err) {
		t.Errorf("through a partition: %q, %v", got, err)
	}
	l.Heal()
	requireHello()
	if l.Reset() == 0 {
		t.Error("there was no connection to reset")
	}
	requireHello()
}
