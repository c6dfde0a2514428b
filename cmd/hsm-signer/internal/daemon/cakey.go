package daemon

import (
	"context"
	"crypto"
	"io"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/hsm"
	"hsm-signer/issuer/journal"
)

// A caKey is the key that signs certificates: none while the journal is known to be rolled back,
// and the time of each signature is shown in the metrics.
type caKey struct {
	*hsm.Key
	journal *journal.Journal
	metrics *metrics.Metrics
}

// Signer returns a signer whose signatures end with the context.
func (k caKey) Signer(ctx context.Context) crypto.Signer {
	return caSigner{k.Key.Signer(ctx), k}
}

type caSigner struct {
	crypto.Signer
	key caKey
}

// Sign returns an error while the journal is rolled back.
func (s caSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := s.key.journal.RolledBack(); err != nil {
		return nil, err
	}
	began := time.Now()
	defer func() { s.key.metrics.Signed(time.Since(began)) }()
	return s.Signer.Sign(random, digest, opts)
}
