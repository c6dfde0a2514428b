package main

import (
	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
)

// parts are what a process that signs is made of, beside the controller.
type parts struct {
	metrics     *metrics
	key         *hsm.Key
	journal     *journal.Journal
	issuer      *issuer.Issuer
	checkpoints *checkpointer // nil: none are wanted
	witness     *witness
}

// newParts puts the parts together. It is not in touch with the token, and does not open the journal.
func newParts(s *config.Service, m *metrics, logger hclog.Logger) (*parts, error) {
	p := &parts{metrics: m, witness: newWitness(s.StateDir, s.WitnessFile, logger)}
	p.journal = journal.New(s.StateDir, journal.Options{
		Version: buildinfo.Version(), CA: s.CA.Certificate(), MaxRequests: s.MaxRequests, MaxUnfinished: s.MaxUnfinished,
	}, p.witness, logger)
	var err error
	if p.key, err = s.Key(recordProbes(p.journal)); err != nil {
		return nil, err
	}
	key := stoppedKey{timedKey{p.key, m.signed}, p.journal.RolledBack}
	if p.issuer, err = issuer.New(s.CA, key, s.Algorithm, p.journal); err != nil {
		return nil, err
	}
	checkpoint, err := s.CheckpointKey(p.key)
	if err != nil || checkpoint == nil {
		return p, err
	}
	p.checkpoints = newCheckpointer(p.journal, checkpoint, s.CheckpointPublic, s.Checkpoints.Interval, logger)
	p.witness.key = p.checkpoints
	return p, nil
}
