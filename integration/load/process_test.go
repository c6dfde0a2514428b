package load

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// asked returns the request of the tests' task.
func asked() *certificatesv1.CertificateSigningRequest {
	return &certificatesv1.CertificateSigningRequest{
		TypeMeta: metav1.TypeMeta{
			APIVersion: "certificates.k8s.io/v1", Kind: "CertificateSigningRequest",
		},
		ObjectMeta: metav1.ObjectMeta{Name: "node-certs:a"},
	}
}

// serve starts an API server that accepts each request and answers a watch with these versions of
// it. Then it closes the watch, or keeps it open.
func serve(t *testing.T, ends bool, versions ...*certificatesv1.CertificateSigningRequest) Task {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.Method == http.MethodPost {
			_, _ = io.Copy(w, r.Body)
			return
		}
		for _, version := range versions {
			_ = json.NewEncoder(w).Encode(map[string]any{"type": "MODIFIED", "object": version})
		}
		w.(http.Flusher).Flush()
		if !ends {
			<-r.Context().Done()
		}
	}))
	t.Cleanup(server.Close)
	return Task{Host: server.URL, Request: asked(), Timeout: time.Minute}
}

// The outcome of a process is that of Calico's client.
func TestOutcomesOfATask(t *testing.T) {
	approved, issued, other := asked(), asked(), asked()
	approved.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{
		{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue},
	}
	issued.Status = *approved.Status.DeepCopy()
	issued.Status.Certificate = []byte("certificate")
	other.Name, other.Status = "node-certs:b", issued.Status
	short := serve(t, false, approved)
	short.Timeout = 100 * time.Millisecond
	for _, test := range []struct {
		name string
		task Task
		want Outcome
	}{
		{"a certificate", serve(t, false, other, approved, issued), Succeeded},
		{"a watch that ends", serve(t, true, other, approved), Lost},
		{"no certificate", short, Late},
	} {
		if got, err := test.task.Do(t.Context()); err != nil || got != test.want {
			t.Errorf("%s: got %v, %v; want %v", test.name, got, err, test.want)
		}
	}
	unreachable := Task{Host: "http://127.0.0.1:1", Request: asked(), Timeout: time.Minute}
	if got, err := unreachable.Do(t.Context()); err == nil || got != Broken {
		t.Errorf("no API server: got %v, %v; want an error", got, err)
	}
}
