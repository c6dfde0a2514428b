package e2e

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/faultproxy"
	"hsm-signer/integration/load"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// patientClient is a plan with which a client is only late if the signer does not answer.
var patientClient = load.Plan{PerEvent: 3 * time.Millisecond, Timeout: time.Hour}

// Pods that start at once all get their certificates, each within 90 seconds.
func TestLoadIsServed(t *testing.T) {
	startReady(t, ca)
	pods := must.Get(shared.LoadPods(t.Context(), node, 10))(t)
	report := load.Run(t.Context(), pods, patientClient)
	if report.Succeeded != len(pods) || report.Issued != len(pods) || report.P50 <= 0 ||
		report.Max < report.P99 {
		t.Errorf("%d pods asked: %s; errors: %v", len(pods), report, report.Errors)
	}
}

// A client whose watch ends early is lost: it exits with success and has no files. It does not try
// again.
func TestLoadCountsLostClients(t *testing.T) {
	proxy := must.Get(faultproxy.NewProxy(shared.Cluster.Config()))(t)
	defer proxy.Close()
	pods := must.Get(shared.LoadPods(t.Context(), node, 3))(t)
	for i := range pods {
		pods[i].Config = proxy.Config(pods[i].Config.BearerToken)
	}
	done, watching := make(chan load.Report), make(chan struct{}, len(pods))
	plan := patientClient
	plan.Attempts, plan.Watching = 2, func() { watching <- struct{}{} }
	go func() { done <- load.Run(t.Context(), pods, plan) }()
	for range pods {
		<-watching
	}
	proxy.CutWatches()
	if report := <-done; report.Lost != len(pods) || report.Issued != 0 {
		t.Errorf("%d watches were cut: %s; errors: %v", len(pods), report, report.Errors)
	}
}

// A client without an answer is late. Its next attempt replaces the request, whose key is lost, by
// one with the same name.
func TestLoadStartsLateClientsAgain(t *testing.T) {
	pods := must.Get(shared.LoadPods(t.Context(), node, 2))(t)
	plan := load.Plan{Attempts: 2, Timeout: time.Second}
	if report := load.Run(t.Context(), pods, plan); report.Late != len(pods) || report.Issued != 0 {
		t.Fatalf("without a signer: %s; errors: %v", report, report.Errors)
	}
	startReady(t, ca)
	if report := load.Run(t.Context(), pods, patientClient); report.Succeeded != len(pods) {
		t.Errorf("the requests of earlier attempts are there: %s; errors: %v", report,
			report.Errors)
	}
}

// Clients in separate processes get their certificates too.
func TestLoadOfProcessesIsServed(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "calicoclient")
	must.OK(t, testenv.BuildClient(t.Context(), binary))
	startReady(t, ca)
	pods := must.Get(shared.LoadPods(t.Context(), node, 3))(t)
	report := must.Get(load.Processes{Binary: binary}.Run(t.Context(), pods))(t)
	if report.Succeeded != len(pods) || report.Issued != len(pods) || report.P50 <= 0 {
		t.Errorf("%d pods asked: %s; errors: %v", len(pods), report, report.Errors)
	}
}

// Clients send their requests within a second. When half of them watch, hsm-signer is killed or the
// leader changes. Every request gets its certificate, and no client ends without files unless the
// API server closed its watch.
func TestClientsSurviveTheEndOfASigner(t *testing.T) {
	state := "STATE_DIR=" + filepath.Join(t.TempDir(), "state")
	for _, test := range []struct {
		name    string
		start   func(t *testing.T) *testenv.Daemon // what is in office first
		replace func(t *testing.T, first *testenv.Daemon)
	}{
		{"killed and started again", func(t *testing.T) *testenv.Daemon {
			return startReady(t, ca, state)
		}, func(t *testing.T, first *testenv.Daemon) {
			must.OK(t, first.Kill())
			startReady(t, ca, state)
		}},
		{"followed by another leader", func(t *testing.T) *testenv.Daemon {
			first := startCandidate(t)
			waitLeads(t, first)
			startCandidate(t)
			return first
		}, func(t *testing.T, first *testenv.Daemon) {
			must.OK(t, first.Shutdown())
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			first := test.start(t)
			requireServedAmid(t, 100, func() { test.replace(t, first) })
		})
	}
}

// requireServedAmid starts clients within a second, and calls middle when half of them watch.
func requireServedAmid(t *testing.T, clients int, middle func()) {
	t.Helper()
	pods := must.Get(shared.LoadPods(t.Context(), node, clients))(t)
	before := must.Get(load.Terminated(t.Context(), shared.Cluster.Client()))(t)
	plan := patientClient
	plan.Every = time.Second / time.Duration(clients)
	report := must.Get(load.RunAmid(t.Context(), pods, plan, middle))(t)
	after := must.Get(load.Terminated(t.Context(), shared.Cluster.Client()))(t)
	if report.Succeeded+report.Lost != clients || report.Lost > after-before {
		t.Errorf("%s; the API server closed %d watches; errors: %v", report, after-before,
			report.Errors)
	}
	for _, pod := range pods {
		waitIssued(t, pod.Asking.Name())
	}
}

// waitIssued waits until the request with this name has its certificate.
func waitIssued(t *testing.T, name string) {
	t.Helper()
	requests := shared.Cluster.Requests()
	must.Eventually(t, "the certificate of "+name, func(ctx context.Context) (bool, error) {
		csr, err := requests.Get(ctx, name, metav1.GetOptions{})
		return err == nil && len(csr.Status.Certificate) > 0, err
	})
}

// A fixed rate serves all clients too, and the metrics show it.
func TestAnswerRate(t *testing.T) {
	d := startReady(t, ca, "ANSWER_RATE=20")
	pods := must.Get(shared.LoadPods(t.Context(), node, 10))(t)
	if report := load.Run(t.Context(), pods, patientClient); report.Succeeded != len(pods) {
		t.Errorf("%d pods asked: %s; errors: %v", len(pods), report, report.Errors)
	}
	if shown := d.Metrics(t.Context()); !strings.Contains(shown,
		`hsm_signer_answer_rate{reason="fixed"} 20`) {
		t.Errorf("the metrics do not show the rate:\n%s", shown)
	}
}
