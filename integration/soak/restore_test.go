package soak

import (
	"bytes"
	"context"
	"testing"

	"hsm-signer/integration/must"
)

// etcd is restored to a time before certificates were issued, and the journal is not. The requests
// are open again and get the same certificates.
func TestEtcdIsRestored(t *testing.T) {
	r := begin(t, 16,
		"etcd restored to before 100 issuances, with the same journal, while hsm-signer runs; "+
			"then again while it does not",
		"no UID gets a second, different certificate")
	own := ownFixture(t)
	restoreEtcd(t, r, own.signer(t), own.newBatch, of(10, 100))
}

func restoreEtcd(t *testing.T, r *row, s *signer, newBatch func(*testing.T) *batch, requests int) {
	t.Helper()
	c := newBatch(t)
	c.ask(t, requests)
	restore, err := s.Cluster.Backup(context.Background())
	must.OK(t, err)
	d := s.startReady(t)
	c.waitForAll(t)
	first, err := c.answers(t.Context())
	must.OK(t, err)

	must.OK(t, restore())
	took := c.waitForAll(t)
	must.OK(t, d.Shutdown())
	must.OK(t, restore())
	open, err := c.lost(t.Context())
	must.OK(t, err)
	d = s.startReady(t)
	c.waitForAll(t)
	again, err := c.answers(t.Context())
	must.OK(t, err)
	different := 0
	for uid, before := range first {
		if !bytes.Equal(before.chain, again[uid].chain) {
			different++
		}
	}
	late := newBatch(t)
	late.ask(t, 3) // new requests are served too
	late.waitForAll(t)
	must.OK(t, d.Shutdown())
	a := s.account(t)
	a.requireWhole(t, c)
	if different > 0 || a.again > 0 || len(open) != requests {
		t.Errorf("%d requests have another certificate than before, %d were signed again; "+
			"%d of %d were open after the restore", different, a.again, len(open), requests)
	}
	r.measured("%d issued, set back twice, %d open each time", requests, len(open))
	r.measured("a second, different certificate %d; signed again %d", different, a.again)
	r.measured("all issued again %s after the API server was back", seconds(took))
}
