package e2e

import (
	"testing"
	"time"

	"hsm-signer/integration/faultproxy"
	"hsm-signer/integration/fleet"
	"hsm-signer/integration/load"
	"hsm-signer/integration/must"
)

// Clients that lose their watch leave pods without a certificate. heal deletes these pods, and
// their successors get one.
func TestLostClientsAreHealed(t *testing.T) {
	proxy := must.Get(faultproxy.NewProxy(shared.Cluster.Config()))(t)
	defer proxy.Close()
	const pods = 4
	f := must.Get(fleet.New(t.Context(), shared, node, pods))(t)
	f.Backdate = 2 * time.Minute
	watching := make(chan struct{}, 10*pods)
	plan := load.Plan{PerEvent: 3 * time.Millisecond, Timeout: time.Hour,
		Watching: func() { watching <- struct{}{} }}
	for i := range f.Pods {
		f.Pods[i].Config = proxy.Config(f.Pods[i].Config.BearerToken)
	}
	healer, done := startHealer(t), make(chan error)
	f.Healer = healer
	var report fleet.Report
	go func() {
		var err error
		report, err = f.Run(t.Context(), plan, 5*time.Minute)
		done <- err
	}()
	for range pods {
		<-watching
	}
	proxy.CutWatches()
	startReady(t, ca)
	if err := <-done; err != nil || report.Lost != pods || report.Detected != pods ||
		report.Deleted != pods || report.Unserved != 0 {
		t.Errorf("%v, %v; the log of heal:\n%s", report, err, healer.Log())
	}
}
