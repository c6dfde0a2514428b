package bridge_test

import (
	"path/filepath"
	"testing"
	"time"

	"hsm-signer/integration/bridge"
	"hsm-signer/integration/load"
	"hsm-signer/integration/weather"
)

// patientClient is a plan under which only a signer that answers nothing makes a client late.
var patientClient = load.Plan{PerEvent: 3 * time.Millisecond, Timeout: time.Hour}

// Pods that start at once all get their certificates, and each client keeps the 90 seconds.
func TestLoadIsServed(t *testing.T) {
	startReady(t, ca)
	pods, err := shared.LoadPods(t.Context(), components()[0], 10)
	must(t, err)
	report := load.Run(t.Context(), pods, patientClient)
	if report.Succeeded != len(pods) || report.Issued != len(pods) || report.P50 <= 0 || report.Max < report.P99 {
		t.Errorf("%d pods asked: %s; errors: %v", len(pods), report, report.Errors)
	}
}

// A client whose watch ends early is lost: it ends well and has no files. It does not ask again.
func TestLoadCountsLostClients(t *testing.T) {
	proxy, err := weather.NewProxy(shared.Cluster.Config())
	must(t, err)
	defer proxy.Close()
	pods, err := shared.LoadPods(t.Context(), components()[0], 3)
	must(t, err)
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

// A client that nobody answers is late. Its next attempt replaces the request, whose key is lost,
// by one of the same name.
func TestLoadStartsLateClientsAgain(t *testing.T) {
	pods, err := shared.LoadPods(t.Context(), components()[0], 2)
	must(t, err)
	plan := load.Plan{Attempts: 2, Timeout: time.Second}
	if report := load.Run(t.Context(), pods, plan); report.Late != len(pods) || report.Issued != 0 {
		t.Fatalf("nobody answers: %s; errors: %v", report, report.Errors)
	}
	startReady(t, ca)
	if report := load.Run(t.Context(), pods, patientClient); report.Succeeded != len(pods) {
		t.Errorf("the requests of earlier attempts are there: %s; errors: %v", report, report.Errors)
	}
}

// Clients in processes of their own get their certificates too.
func TestLoadOfProcessesIsServed(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "calicoclient")
	must(t, bridge.BuildClient(t.Context(), binary))
	startReady(t, ca)
	pods, err := shared.LoadPods(t.Context(), components()[0], 3)
	must(t, err)
	report, err := load.Processes{Binary: binary}.Run(t.Context(), pods)
	must(t, err)
	if report.Succeeded != len(pods) || report.Issued != len(pods) || report.P50 <= 0 {
		t.Errorf("%d pods asked: %s; errors: %v", len(pods), report, report.Errors)
	}
}
