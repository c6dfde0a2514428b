package daemon

import (
	"context"
	"time"

	"hsm-signer/hsm"
	"hsm-signer/issuer/journal"
)

// probeTimeout bounds the wait for a line that says that a test signature is made.
const probeTimeout = 5 * time.Second

// probes are the test signatures of a CA's key.
type probes struct {
	journal *journal.Journal
	key     string // SHA-256 of the key, hex; empty: that of the CA in CA_CERT_FILE
}

// record records that a test signature is about to be made. An error keeps it from being made; so
// does a journal that is not open.
func (p probes) record(ctx context.Context, when hsm.ProbeTime) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return p.journal.Append(ctx, journal.Probe{When: string(when), Text: hsm.ProbeText,
		KeySHA256: p.key})
}
