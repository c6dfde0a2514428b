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

// A caKey is a key that signs certificates: none while the journal is known to be rolled back or
// the phase of a rotation is not clear, and the time of each signature is shown in the metrics.
type caKey struct {
	*hsm.Key
	journal  *journal.Journal
	rotation interface{ Fault() error }
	metrics  *metrics.Metrics
}

// Ready returns nil if the key can sign now.
func (k caKey) Ready(ctx context.Context) error {
	if err := k.rotation.Fault(); err != nil {
		return err
	}
	return k.Key.Ready(ctx)
}

// Signer returns a signer whose signatures end with the context.
func (k caKey) Signer(ctx context.Context) crypto.Signer {
	return caSigner{k.Key.Signer(ctx), k}
}

type caSigner struct {
	crypto.Signer
	key caKey
}

// Sign returns an error while the journal is rolled back, or the phase of a rotation is not clear.
func (s caSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := s.key.journal.RolledBack(); err != nil {
		return nil, err
	}
	if err := s.key.rotation.Fault(); err != nil {
		return nil, err
	}
	began := time.Now()
	defer func() { s.key.metrics.Signed(time.Since(began)) }()
	return s.Signer.Sign(random, digest, opts)
}
