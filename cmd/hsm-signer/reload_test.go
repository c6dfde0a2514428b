package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"hsm-signer/policy"
)

// A changed file comes into force; a bad one is refused, and the policy before it stays.
func TestPolicyIsReloaded(t *testing.T) {
	first, _ := policy.BuiltIn("calico")
	file := filepath.Join(t.TempDir(), "policy.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(string(first))
	c := &config{policyFile: file, clusterDomain: "cluster.local", lifetime: time.Hour}
	p := c.loadPolicy(&configFaults{})
	var log bytes.Buffer
	r := newPolicyReloader(c, policy.NewCurrent(p), genericCA(t), newMetrics(), hclog.New(&hclog.LoggerOptions{Output: &log}))
	var events []string
	r.changed = func() { events = append(events, "changed") }
	r.warn = func(reason, _ string) { events = append(events, reason) }

	r.look()
	if r.current.Policy() != p || log.Len() > 0 {
		t.Errorf("an unchanged file was taken for a changed one: %s", &log)
	}

	write("version: 1\nrulez: []\n")
	r.look()
	r.look()
	if r.current.Policy() != p || strings.Count(log.String(), "refused") != 1 || !strings.Contains(r.state(), `unknown key "rulez"`) {
		t.Errorf("a bad file: %s; state: %s", &log, r.state())
	}
	if !slices.Equal(events, []string{"PolicyRefused"}) || testutil.ToFloat64(r.metrics.fileRefused) != 1 {
		t.Errorf("a bad file: events %v, metric %v", events, testutil.ToFloat64(r.metrics.fileRefused))
	}

	write(string(first) + "# changed\n")
	if err := os.Chmod(file, 0o666); err != nil {
		t.Fatal(err)
	}
	r.look()
	if r.current.Policy() != p || !strings.Contains(r.state(), "can be written by everyone") {
		t.Errorf("a file that everybody may write came into force; state: %s", r.state())
	}

	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	r.look()
	if r.current.Policy() != p {
		t.Error("the file came into force at the first look, while it may still be written")
	}
	r.look()
	if r.current.Policy() == p || strings.Contains(r.state(), "refused") || !strings.Contains(log.String(), "is in force") {
		t.Errorf("a good file did not come into force: %s; state: %s", &log, r.state())
	}
	if events[len(events)-1] != "changed" || testutil.ToFloat64(r.metrics.fileRefused) != 0 || testutil.ToFloat64(r.metrics.inForce.WithLabelValues(r.current.Policy().Hash())) != 1 {
		t.Error("the metrics still show the bad file, or nobody was told")
	}
}
