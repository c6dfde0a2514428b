package bridge_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"hsm-signer/integration/calico"
)

// Killed again and again while requests come in, and started again on the same journal: every request
// gets its certificate, none gets two, and the journal verifies.
func TestKilledAgainAndAgain(t *testing.T) {
	const rounds, requests = 10, 12
	env := []string{"STATE_DIR=" + filepath.Join(t.TempDir(), "state"), withBudget(t, "{perPod: 1000}")}
	node := components()[0]
	p := newPod(t, node, nextIP())
	var asked []calico.InitContainer
	uids := map[string]bool{}
	for round := range rounds {
		d, err := shared.Run(t.Context(), ca, env...)
		must(t, err)
		must(t, d.WaitReady(t.Context()))
		for i := range requests {
			asking := p.asking(t, node)
			asking.SecretName = fmt.Sprintf("killed-%d-%d", round, i)
			csr, err := asking.Submit(t.Context(), p.client)
			must(t, err)
			asked, uids[string(csr.UID)] = append(asked, asking), true
		}
		must(t, d.Kill()) // in the midst of them
	}
	startReady(t, ca, env...)
	serials := map[string]bool{}
	for _, asking := range asked {
		csr, err := calico.Wait(t.Context(), p.client, asking.Name())
		must(t, err)
		serials[requireIssued(t, csr, asking).SerialNumber.String()] = true
	}
	if len(serials) != len(asked) {
		t.Errorf("%d certificates for %d requests", len(serials), len(asked))
	}
	requireJournal(t, env, uids)
}

// requireJournal requires that the journal verifies, and holds one certificate for each of the requests. There
// may be others in the cluster, that other tests made.
func requireJournal(t *testing.T, env []string, uids map[string]bool) {
	t.Helper()
	if stdout, stderr, code := shared.Command(t.Context(), ca, env, "audit", "verify"); code != 0 {
		t.Errorf("audit verify: exit code %d: %s%s", code, stdout, stderr)
	}
	stdout, stderr, code := shared.Command(t.Context(), ca, env, "audit", "list", "--output", "json")
	certificates := map[string]int{}
	for line := range strings.Lines(stdout) {
		var issued struct{ UID string }
		must(t, json.Unmarshal([]byte(line), &issued))
		certificates[issued.UID]++
	}
	if code != 0 {
		t.Errorf("audit list: exit code %d: %s", code, stderr)
	}
	for uid := range uids {
		if n := certificates[uid]; n != 1 {
			t.Errorf("%d certificates are listed for the request %s; want 1", n, uid)
		}
	}
}

// Two on one node do not write one journal: the second stands by, not ready, until the first has ended.
func TestJournalIsForOne(t *testing.T) {
	env := []string{"STATE_DIR=" + filepath.Join(t.TempDir(), "state")}
	first, err := shared.Run(t.Context(), ca, env...)
	must(t, err)
	must(t, first.WaitReady(t.Context()))
	second, err := shared.Run(t.Context(), ca, env...)
	must(t, err)
	must(t, second.WaitNotReady(t.Context(), "[-] journal: the journal is in use"))
	must(t, first.Kill())
	must(t, second.WaitReady(t.Context()))
	if code, err := second.Stop(); err != nil || code != 0 {
		t.Errorf("it ended with code %d, %v", code, err)
	}
}
