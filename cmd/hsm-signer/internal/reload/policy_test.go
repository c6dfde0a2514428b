package reload

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

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/internal/must"
	"hsm-signer/issuer"
	"hsm-signer/policy"
)

// sentEvents are the reasons of Events that were sent, and "changed" for each change of the policy.
type sentEvents struct{ events []string }

func (s *sentEvents) Warn(reason, _ string) { s.events = append(s.events, reason) }
func (s *sentEvents) LookAgain()            { s.events = append(s.events, "changed") }

// A fixedCA is one that is not replaced.
type fixedCA struct{ ca *issuer.CA }

func (f fixedCA) CA() *issuer.CA { return f.ca }

// builtInPolicy is Calico's policy.
func builtInPolicy(t *testing.T) *policy.Policy {
	t.Helper()
	c := &config.Config{PolicyFile: "calico", ClusterDomain: "cluster.local", Lifetime: time.Hour}
	faults := &setting.Faults{}
	p := c.LoadPolicy(faults)
	must.OK(t, faults.Err())
	return p
}

// A changed file takes effect; a bad one is refused, and the former policy stays.
func TestPolicyIsReloaded(t *testing.T) {
	first, _ := policy.BuiltIn("calico")
	file := filepath.Join(t.TempDir(), "policy.yaml")
	write := func(text string) {
		t.Helper()
		must.OK(t, os.WriteFile(file, []byte(text), 0o600))
	}
	write(string(first))
	c := &config.Config{PolicyFile: file, ClusterDomain: "cluster.local", Lifetime: time.Hour}
	p := c.LoadPolicy(&setting.Faults{})
	var log bytes.Buffer
	sent := &sentEvents{}
	r := NewPolicy(c, policy.NewCurrent(p), fixedCA{fixture.GenericCA(t)()}, nil, sent,
		metrics.New(), hclog.New(&hclog.LoggerOptions{Output: &log}))

	r.look()
	if r.current.Policy() != p || log.Len() > 0 {
		t.Errorf("an unchanged file was taken for a changed one: %s", &log)
	}

	write("version: 1\nrulez: []\n")
	r.look()
	r.look()
	if r.current.Policy() != p || strings.Count(log.String(), "refused") != 1 ||
		!strings.Contains(r.State(), `unknown key "rulez"`) {
		t.Errorf("a bad file: %s; state: %s", &log, r.State())
	}
	if !slices.Equal(sent.events, []string{"PolicyRefused"}) ||
		testutil.ToFloat64(r.metrics.FileRefused) != 1 {
		t.Errorf("a bad file: events %v, metric %v", sent.events,
			testutil.ToFloat64(r.metrics.FileRefused))
	}

	write(string(first) + "# changed\n")
	must.OK(t, os.Chmod(file, 0o666))
	r.look()
	if r.current.Policy() != p || !strings.Contains(r.State(), "can be written by everyone") {
		t.Errorf("a file that everybody may write came into force; state: %s", r.State())
	}

	must.OK(t, os.Chmod(file, 0o600))
	r.look()
	if r.current.Policy() != p {
		t.Error("the file came into force at the first look, while it may still be written")
	}
	r.look()
	if r.current.Policy() == p || strings.Contains(r.State(), "refused") ||
		!strings.Contains(log.String(), "is in force") {
		t.Errorf("a good file did not come into force: %s; state: %s", &log, r.State())
	}
	if sent.events[len(sent.events)-1] != "changed" ||
		testutil.ToFloat64(r.metrics.FileRefused) != 0 ||
		testutil.ToFloat64(r.metrics.InForce.WithLabelValues(r.current.Policy().Hash())) != 1 {
		t.Error("the metrics still show the bad file, or nobody was told")
	}
}

// A policy under which the next CA could issue nothing is refused: it may sign at any moment.
func TestPolicyMustFitTheNextCA(t *testing.T) {
	const text = `version: 1
rules:
  - name: one
    from: {serviceAccounts: [ns/sa]}
    grant: {dnsNames: [NAME], keys: [ecdsa-p256], usages: [digital signature]}
`
	write := func(file, name string) {
		t.Helper()
		must.OK(t, os.WriteFile(file, []byte(strings.Replace(text, "NAME", name, 1)), 0o600))
	}
	file := filepath.Join(t.TempDir(), "policy.yaml")
	write(file, "here")
	c := &config.Config{PolicyFile: file, ClusterDomain: "cluster.local", Lifetime: time.Hour}
	faults := &setting.Faults{}
	p := c.LoadPolicy(faults)
	must.OK(t, faults.Err())
	narrow, err := os.ReadFile(fixture.ConstrainedCA(t, []string{"here", "there"}, nil))
	must.OK(t, err)
	next := &replacedCA{ca: must.Value(issuer.ParseCA(narrow))(t)}
	r := NewPolicy(c, policy.NewCurrent(p), fixedCA{fixture.GenericCA(t)()}, next,
		&sentEvents{}, metrics.New(), hclog.NewNullLogger())
	write(file, "elsewhere")
	r.look()
	r.look()
	if r.current.Policy() != p || !strings.Contains(r.State(), "refused") {
		t.Errorf("it is in force: %s", r.State())
	}
	write(file, "there")
	r.look()
	r.look()
	if r.current.Policy() == p || strings.Contains(r.State(), "refused") {
		t.Errorf("it is refused: %s", r.State())
	}
	narrow, err = os.ReadFile(fixture.ConstrainedCA(t, []string{"there"}, nil))
	must.OK(t, err)
	next.ca = must.Value(issuer.ParseCA(narrow))(t)
	write(file, "here")
	r.look()
	if r.look(); !strings.Contains(r.State(), "refused") {
		t.Errorf("it is in force, and the next CA was replaced: %s", r.State())
	}
}

// The log warns of rules that are as wide as they can be.
func TestWideRulesAreLogged(t *testing.T) {
	text, err := os.ReadFile(fixture.Path(t, "integration/testdata/allow-everything.yaml"))
	must.OK(t, err)
	p, err := policy.Parse(text,
		policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour})
	must.OK(t, err)
	var log bytes.Buffer
	LogWarnings(hclog.New(&hclog.LoggerOptions{Output: &log}), p.Warnings())
	const loudly = "rule everything: ANYONE (from.users: *) may have ANY name"
	if !strings.Contains(log.String(), loudly) || !strings.Contains(log.String(), "[WARN]") {
		t.Errorf("the log says %s", &log)
	}
}

// A changed list takes effect, with a built-in policy too; a bad one is refused, and the former
// list stays.
func TestBlockedKeysAreReloaded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "blocked")
	write := func(text string) {
		t.Helper()
		must.OK(t, os.WriteFile(file, []byte(text), 0o600))
	}
	write(strings.Repeat("0", 64))
	c := &config.Config{PolicyFile: "calico", BlockedKeysFile: file, ClusterDomain: "cluster.local",
		Lifetime: time.Hour}
	p := c.LoadPolicy(&setting.Faults{})
	var log bytes.Buffer
	r := NewPolicy(c, policy.NewCurrent(p), fixedCA{fixture.GenericCA(t)()}, nil, &sentEvents{},
		metrics.New(), hclog.New(&hclog.LoggerOptions{Output: &log}))
	r.look()
	if r.current.Policy() != p || log.Len() > 0 {
		t.Errorf("an unchanged file was taken for a changed one: %s", &log)
	}
	write("x\n")
	r.look()
	if r.current.Policy() != p || !strings.Contains(r.State(), "BLOCKED_KEYS_FILE: "+file) ||
		!strings.Contains(r.State(), "line 1: ") {
		t.Errorf("a bad file: %s; state: %s", &log, r.State())
	}
	write(strings.Repeat("0", 64) + "\n" + strings.Repeat("1", 64))
	r.look()
	r.look()
	if now := r.current.Policy(); now == p || now.BlockedKeys().Len() != 2 ||
		strings.Contains(r.State(), "refused") {
		t.Errorf("a good file did not come into force: %s; state: %s", &log, r.State())
	}
	must.OK(t, os.Remove(file))
	r.look()
	if r.current.Policy().BlockedKeys().Len() != 2 || !strings.Contains(r.State(), "refused") {
		t.Errorf("without the file: %s", r.State())
	}
}
