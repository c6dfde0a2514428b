package daemon

import (
	"context"
	"crypto"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/witness"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
)

// parts are what a process that signs consists of, in addition to the controller.
type parts struct {
	metrics     *metrics.Metrics
	key         *hsm.Key
	journal     *journal.Journal
	issuer      *issuer.Issuer
	checkpoints *witness.Checkpointer // nil: none are wanted
	witness     *witness.Witness
}

// newParts puts the parts together. It is not in touch with the token, and does not open the
// journal.
func newParts(s *config.Service, m *metrics.Metrics, logger hclog.Logger) (*parts, error) {
	p := &parts{metrics: m, witness: witness.New(s.StateDir, s.WitnessFile, logger)}
	p.journal = journal.New(s.StateDir, journal.Options{
		Version: buildinfo.Version(), CA: s.CA.Certificate(), MaxRequests: s.MaxRequests, MaxUnfinished: s.MaxUnfinished,
	}, p.witness, logger)
	var err error
	if p.key, err = s.Key(recordProbes(p.journal)); err != nil {
		return nil, err
	}
	key := stoppedKey{timedKey{p.key, m.Signed}, p.journal.RolledBack}
	if p.issuer, err = issuer.New(s.CA, key, s.Algorithm, p.journal); err != nil {
		return nil, err
	}
	checkpoint, err := s.CheckpointKey(p.key)
	if err != nil || checkpoint == nil {
		return p, err
	}
	p.checkpoints = witness.NewCheckpointer(p.journal, checkpoint, s.CheckpointPublic,
		s.Checkpoints.Interval, logger)
	p.witness.Key = p.checkpoints
	return p, nil
}

// A stoppedKey signs no certificate while the journal is known to be rolled back.
type stoppedKey struct {
	timedKey
	rolledBack func() error
}

// Signer returns a signer that returns an error while the journal is rolled back.
func (k stoppedKey) Signer(ctx context.Context) crypto.Signer {
	return stoppedSigner{k.timedKey.Signer(ctx), k.rolledBack}
}

type stoppedSigner struct {
	crypto.Signer
	rolledBack func() error
}

func (s stoppedSigner) Sign(random io.Reader, digest []byte,
	opts crypto.SignerOpts) ([]byte, error) {
	if err := s.rolledBack(); err != nil {
		return nil, err
	}
	return s.Signer.Sign(random, digest, opts)
}

// A timedKey reports how long each signature of a certificate took.
type timedKey struct {
	*hsm.Key
	signed func(time.Duration)
}

// Signer returns a signer whose signatures end with the context, and are timed.
func (k timedKey) Signer(ctx context.Context) crypto.Signer {
	return timedSigner{k.Key.Signer(ctx), k.signed}
}

type timedSigner struct {
	crypto.Signer
	signed func(time.Duration)
}

func (s timedSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	began := time.Now()
	defer func() { s.signed(time.Since(began)) }()
	return s.Signer.Sign(random, digest, opts)
}
