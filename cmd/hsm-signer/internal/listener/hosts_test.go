package listener

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

// A hostile site can make its own name lead here (DNS rebinding); the browser then sends that name.
func TestHosts(t *testing.T) {
	pod := ServiceHosts("hsm-signer", "dev", "cluster.local")
	pod.Addresses = AnyAddress
	pod.Names = append(pod.Names, "Signer.Example.com", "")
	loopback := Hosts{Addresses: netip.Addr.IsLoopback}
	for _, c := range []struct {
		hosts Hosts
		host  string
		want  bool
	}{
		{pod, "localhost:8080", true},
		{pod, "LOCALHOST", true},
		{pod, "localhost.", true},
		{pod, "10.244.1.7:8080", true},
		{pod, "[fd00::7]:8080", true},
		{pod, "[fd00::7]", true},
		{pod, "hsm-signer", true},
		{pod, "hsm-signer.dev:8080", true},
		{pod, "hsm-signer.dev.svc", true},
		{pod, "hsm-signer.dev.svc.cluster.local:8080", true},
		{pod, "hsm-signer.dev.svc.cluster.local.", true},
		{pod, "hsm-signer-0.hsm-signer.dev.svc.cluster.local", true},
		{pod, "renamed-signer.dev.svc", true},
		{pod, "signer.example.com:80", true},
		{pod, "", false},
		{pod, ":8080", false},
		{pod, ".", false},
		{pod, "evil.dev", false}, // dev is a top-level domain too
		{pod, "evil.example", false},
		{pod, "localhost.evil.example", false},
		{pod, "10.0.0.1.evil.example", false},
		{pod, "hsm-signer.dev.svc.evil.example", false},
		{pod, "hsm-signer.other.svc", false},
		{pod, "evilsigner.example.com", false},
		{loopback, "127.0.0.1:9999", true}, // as through kubectl port-forward
		{loopback, "[::1]:8081", true},
		{loopback, "192.0.2.7:8081", false},
		{loopback, "evil.example:8081", false},
	} {
		if got := c.hosts.Allow(c.host); got != c.want {
			t.Errorf("asked as %q: %t; want %t", c.host, got, c.want)
		}
	}
}

func TestAForeignNameIsToldWhatToDo(t *testing.T) {
	reached := false
	guarded := Hosts{Addresses: AnyAddress}.Guard(http.HandlerFunc(func(http.ResponseWriter,
		*http.Request) {
		reached = true
	}))
	for host, code := range map[string]int{"evil.example": http.StatusMisdirectedRequest,
		"10.0.0.1": http.StatusOK} {
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Host, reached = host, false
		w := httptest.NewRecorder()
		guarded.ServeHTTP(w, r)
		if w.Code != code || reached != (code == http.StatusOK) || !reached &&
			!strings.Contains(w.Body.String(), "ALLOWED_HOSTS") {
			t.Errorf("%s: %d %q, reached %t", host, w.Code, w.Body, reached)
		}
	}
}
