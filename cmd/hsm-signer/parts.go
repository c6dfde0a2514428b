package main

import (
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
	journal     *keptJournal
	issuer      *issuer.Issuer
	checkpoints *checkpointer // nil: none are wanted
	witness     *witness
}

// newParts puts the parts together. It is not in touch with the token, and does not open the journal.
func newParts(s *config.Service, m *metrics) (*parts, error) {
	p := &parts{metrics: m, journal: newKeptJournal(s.StateDir, journal.Options{
		Version: buildinfo.Version(), CA: s.CA.Certificate(), MaxRequests: s.MaxRequests, MaxUnfinished: s.MaxUnfinished,
	})}
	p.witness = newWitness(p.journal, s.WitnessFile)
	var err error
	if p.key, err = s.Key(p.journal.probe); err != nil {
		return nil, err
	}
	key := stoppedKey{timedKey{p.key, m.signed}, p.journal.rolledBack}
	if p.issuer, err = issuer.New(s.CA, key, s.Algorithm, p.journal); err != nil {
		return nil, err
	}
	checkpoint, err := s.CheckpointKey(p.key)
	if err != nil || checkpoint == nil {
		return p, err
	}
	p.checkpoints = newCheckpointer(p.journal, checkpoint, s.CheckpointPublic, s.Checkpoints.Interval)
	p.witness.key = p.checkpoints
	return p, nil
}
