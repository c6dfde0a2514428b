package e2e

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// electing is the environment of a candidate for leadership.
var electing = []string{"LEADER_ELECT=true", "LEASE_NAMESPACE=hsm-signer"}

// startCandidate starts a candidate, which is ready also while it stands by.
func startCandidate(t *testing.T, env ...string) *testenv.Daemon {
	t.Helper()
	return startReady(t, ca, append(env, electing...)...)
}

func waitLeads(t *testing.T, d *testenv.Daemon) {
	t.Helper()
	must.Eventually(t, "it to lead",
		func(ctx context.Context) (bool, error) { return d.Leads(ctx), nil })
}

func issuedBy(d *testenv.Daemon) int { return strings.Count(d.Log(), `"@message":"issued"`) }

// One candidate leads, the other stands by and is ready. When the first stops it releases the
// lease. The last journal head in the lease is a witness of its journal.
func TestOneOfManyLeads(t *testing.T) {
	state := "STATE_DIR=" + filepath.Join(t.TempDir(), "state")
	first := startCandidate(t, state)
	waitLeads(t, first)
	second := startCandidate(t)
	requireIssues(t)
	must.Eventually(t, "the leader's log to say that it issued",
		func(context.Context) (bool, error) { return issuedBy(first) > 0, nil })
	if n := issuedBy(second); n != 0 {
		t.Errorf("the other issued %d certificates too", n)
	}
	must.OK(t, first.Shutdown())
	for _, log := range regexp.MustCompile(`"head":"([^"]*)"`).
		FindAllStringSubmatch(first.Log(), -1) {
		requireWitnessed(t, state, log[1])
	}
	waitLeads(t, second)
	requireIssues(t)
}

// The other candidate follows a leader that is killed.
func TestKilledLeaderIsFollowed(t *testing.T) {
	t.Parallel()
	s := newOwnSigner(t, "killed-leader")
	state := "STATE_DIR=" + filepath.Join(t.TempDir(), "state")
	first := startCandidate(t, s.env(state)...)
	waitLeads(t, first)
	s.issue(t)
	var head string
	must.Eventually(t, "the lease to be a witness of the certificate",
		func(ctx context.Context) (bool, error) {
			lease, err := shared.Cluster.Client().CoordinationV1().Leases("hsm-signer").Get(ctx,
				string(s), metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			before := head
			head = lease.Annotations["hsm-signer/journal-head"]
			return before != "" && head != before, nil
		})
	requireWitnessed(t, state, head)
	second := startCandidate(t, s.env()...)
	must.OK(t, first.Kill())
	waitLeads(t, second)
	s.issue(t)
}

// requireWitnessed requires that the journal has the head, and that audit verify reports a head
// that it does not have.
func requireWitnessed(t *testing.T, state, head string) {
	t.Helper()
	command(t, ca, []string{state}, "audit", "verify", "--witness", head).prints(t, 0)
	_, sum, _ := strings.Cut(head, ":")
	command(t, ca, []string{state}, "audit", "verify", "--witness", "9999:"+sum).complains(t, 2,
		"the end was cut off")
}

// Two candidates share the directory of the journal. The one that has the journal leads. The other
// stands by, ready, and leads when it gets the journal.
func TestOneJournalForMany(t *testing.T) {
	t.Parallel()
	s := newOwnSigner(t, "one-journal")
	state := "STATE_DIR=" + filepath.Join(t.TempDir(), "state")
	first := startCandidate(t, s.env(state)...)
	waitLeads(t, first)
	second := startCandidate(t, s.env(state)...)
	if _, body, err := second.Readyz(t.Context()); err != nil ||
		!strings.Contains(body, "stands by: the journal is in use") ||
		!strings.Contains(body, "token ok: token connected") {
		t.Errorf("%v: %s", err, body)
	}
	must.OK(t, first.Kill())
	waitLeads(t, second)
	s.issue(t)
}

// A write to the lease keeps nobody from leading: neither a duration of 68 years for a holder that
// does not exist, nor a number of transitions that cannot be incremented.
func TestLeaseOfAHolderThatIsNotThere(t *testing.T) {
	t.Parallel()
	s := newOwnSigner(t, "absent-holder")
	first := startCandidate(t, s.env()...)
	waitLeads(t, first)
	second := startCandidate(t, s.env()...)
	leases := shared.Cluster.Client().CoordinationV1().Leases("hsm-signer")
	must.Get(leases.Patch(t.Context(), string(s), types.MergePatchType, []byte(`{"spec":{
		"holderIdentity":"nobody","leaseDurationSeconds":2147483647,"leaseTransitions":2147483647
	}}`), metav1.PatchOptions{}))(t)
	must.Eventually(t, "one to lead again", func(ctx context.Context) (bool, error) {
		lease, err := leases.Get(ctx, string(s), metav1.GetOptions{})
		return err == nil && *lease.Spec.HolderIdentity != "nobody" &&
			(first.Leads(ctx) || second.Leads(ctx)), err
	})
	s.issue(t)
}

// A leader whose journal lacks one line that the lease has seen signs nothing, and another one
// leads. The acceptance by a person is recorded.
func TestAJournalCutByOneLineDoesNotLead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	state := "STATE_DIR=" + dir
	first := startCandidate(t, state)
	waitLeads(t, first)
	requireIssues(t)
	must.OK(t, first.Shutdown())
	path := filepath.Join(dir, "journal-00000001.jsonl")
	text := must.Get(os.ReadFile(path))(t)
	must.OK(t, os.WriteFile(path, text[:bytes.LastIndexByte(text[:len(text)-1], '\n')+1], 0o600))
	cut := start(t, ca, append([]string{state}, electing...)...)
	must.OK(t, cut.WaitNotReady(t.Context(), "[-] journal: the journal was rolled back"))
	if metrics := cut.Metrics(t.Context()); !strings.Contains(metrics,
		"hsm_signer_journal_rolled_back 1") {
		t.Error("the metric does not say so")
	}
	second := startCandidate(t)
	waitLeads(t, second)
	requireIssues(t)
	_, body, err := cut.Readyz(t.Context())
	must.OK(t, err)
	missing := regexp.MustCompile(`\d+:[0-9a-f]{64}`).FindString(body)
	command(t, ca, []string{state}, "audit", "accept-rollback", "--head", missing).prints(t, 0)
	must.OK(t, cut.WaitReady(t.Context()))
	command(t, ca, []string{state}, "audit", "verify").prints(t, 0, "1 times someone accepted")
}
