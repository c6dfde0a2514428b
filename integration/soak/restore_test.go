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
	requests := of(10, 100)
	r := begin(t, 16,
		"etcd restored to before 100 issuances, with the same journal, while hsm-signer runs; "+
			"then again while it does not",
		"no UID gets a second, different certificate")
	own := ownFixture(t)
	s := own.signer(t)
	c := own.newBatch(t)
	c.ask(t, requests)
	restore, err := own.Cluster.Backup(context.Background())
	must.OK(t, err)
	d := s.startReady(t)
	c.waitForAll(t)
	first, err := c.requests(t.Context())
	must.OK(t, err)

	must.OK(t, restore())
	took := c.waitForAll(t)
	must.OK(t, d.Shutdown())
	must.OK(t, restore())
	open, err := c.lost(t.Context())
	must.OK(t, err)
	d = s.startReady(t)
	c.waitForAll(t)
	again, err := c.requests(t.Context())
	must.OK(t, err)
	different := 0
	for uid, csr := range first {
		if now := again[uid]; now == nil ||
			!bytes.Equal(csr.Status.Certificate, now.Status.Certificate) {
			different++
		}
	}
	late := own.newBatch(t)
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
