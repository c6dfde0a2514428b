package daemon

import (
	"context"
	"encoding/hex"
	"errors"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/health"
	"hsm-signer/cmd/hsm-signer/internal/keyring"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/refusal"
	"hsm-signer/cmd/hsm-signer/internal/rotator"
	"hsm-signer/cmd/hsm-signer/internal/service"
	"hsm-signer/cmd/hsm-signer/internal/stuck"
	"hsm-signer/cmd/hsm-signer/internal/witness"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
	"hsm-signer/kube"
)

// signing is what a process that signs has in addition to the controller.
type signing struct {
	keys        *keyring.Keyring
	journal     *journal.Journal
	issuer      *issuer.Issuer
	checkpoints *witness.Checkpointer // nil: none are wanted
	keeper      *witness.Keeper
	token       *keyring.Watch
	other       *keyring.OtherWatch
	health      *health.Signing
	rotator     *rotator.Rotator
	expiry      *expiry.Watch
	stuck       *stuck.Watch
}

// newSigning puts the parts together, and has their metrics shown. It is not in touch with the
// token, and does not open the journal.
func newSigning(s *service.Service, m *metrics.Metrics, lost *loss,
	logger hclog.Logger) (*signing, error) {
	log := logger.Named("journal")
	w := witness.New(s.StateDir, s.WitnessFile, s.CheckpointPublic, log)
	j := journal.New(s.StateDir, journalOptions(s), w, log)
	key, err := s.Key(probes{journal: j}.record)
	if err != nil {
		return nil, err
	}
	rotates := newRotator(s, j, w, logger.Named("rotation"))
	is, err := issuer.New(s.Authority(caKey{key, j, rotates, m}), j)
	if err != nil {
		return nil, err
	}
	p := &signing{keys: keyring.New(is), journal: j, issuer: is, rotator: rotates,
		keeper: witness.NewKeeper(w, nil),
		expiry: expiry.NewWatch(j, s.Client, logger.Named("expiry")),
		stuck:  stuck.NewWatch(j, s.Client, logger.Named("stuck"))}
	rotates.Issuer = is
	p.keys.Add(s.CA, key)
	checkpoint, err := p.addCheckpoints(s, key, w, log)
	if err != nil {
		return nil, err
	}
	next, err := p.addNext(s, m)
	if err != nil {
		return nil, err
	}
	named := append([]keyring.NamedKey{{Name: "the CA's key", Key: key}}, next...)
	p.addHealth(s, append(named, checkpoint...), w, lost, logger.Named("health"))
	p.register(m, s.Token.AllowExtractable)
	return p, nil
}

// addCheckpoints adds what signs checkpoints of the journal, and returns its key; none if they are
// not wanted.
func (p *signing) addCheckpoints(s *service.Service, ca *hsm.Key, w *witness.Witness,
	logger hclog.Logger) ([]keyring.NamedKey, error) {
	key, err := s.CheckpointKey(ca)
	if key == nil {
		return nil, err
	}
	signer := witness.NewKey(key, s.CheckpointPublic)
	p.keeper = witness.NewKeeper(w, signer)
	p.checkpoints = witness.NewCheckpointer(p.journal, signer, s.Checkpoints.Interval, logger)
	return []keyring.NamedKey{{Name: "the checkpoint key", Key: key}}, nil
}

// addNext has the issuer know the next CA of a rotation, and returns its key; none if there is no
// next CA.
func (p *signing) addNext(s *service.Service, m *metrics.Metrics) ([]keyring.NamedKey, error) {
	if s.Next == nil {
		return nil, nil
	}
	hash := s.Next.CA.KeySHA256()
	key, err := s.Next.Key(probes{p.journal, hex.EncodeToString(hash[:])}.record)
	if err != nil {
		return nil, err
	}
	p.keys.Add(s.Next.CA, key)
	p.rotator.Proved = key.Healthy
	return []keyring.NamedKey{{Name: "the next CA's key", Key: key}},
		p.issuer.Next(s.Next.Authority(caKey{key, p.journal, p.rotator, m}))
}

// addHealth adds the watches of the keys, and what knows whether they, the CA and the journal can
// serve requests.
func (p *signing) addHealth(s *service.Service, keys []keyring.NamedKey, w *witness.Witness,
	lost *loss, logger hclog.Logger) {
	// test signatures can be recorded when the journal is open
	p.token = keyring.NewWatch(p.keys, keys, p.journal.Opened(), s.InPod, lost, logger)
	p.other = keyring.NewOtherWatch(p.keys, logger)
	p.health = &health.Signing{Token: p.token, Other: p.other, Issuer: p.issuer,
		Journal: p.journal, Witness: w, Phase: p.rotator, Standby: s.Lease != nil}
	if s.PodCertificates {
		p.health.Clock = s.Clock
	}
}

// journalOptions returns what the configuration says of the journal.
func journalOptions(s *service.Service) journal.Options {
	o := journal.Options{Version: buildinfo.Version(), CA: s.CA.Certificate(),
		MaxRequests: s.MaxRequests, MaxUnfinished: s.MaxUnfinished}
	if s.Next != nil {
		o.Next = s.Next.CA.Certificate()
	}
	return o
}

// register has the metrics shown.
func (p *signing) register(m *metrics.Metrics, extractable bool) {
	m.WatchSigning(p.keys, p.issuer.CA, p.journal, p.keeper.Witness, extractable)
	m.Registry.MustRegister(metrics.ExpiryCollector{Watch: p.expiry},
		metrics.StuckCollector{Watch: p.stuck}, metrics.RotationCollector{Rotator: p.rotator})
}

// configure adds what a controller needs to issue.
func (p *signing) configure(c *kube.Config, s *service.Service) {
	hold := refusal.New(c.Decider, s.Policy.Hash(), s.PodRefusalDelay)
	c.Decider = hold
	c.Process = process{p.health, p.keeper.Witness, p.rotator}
	c.Issuer = kubeIssuer{p.issuer, hold, s.Clock}
	c.Answers = answers{p.issuer, s.StateDir}
	c.Sinks = append(c.Sinks, refusalSink{p.journal}, answeredSink{p.stuck})
}

// A process is this process as a candidate for the lease; see [kube.Process].
type process struct {
	*health.Signing
	*witness.Witness
	rotator *rotator.Rotator
}

// start opens the journal and keeps it. The function that it returns ends that, after everything
// that writes to the journal has ended.
func (p *signing) start() (stop func()) {
	stopJournal := poll.Start(p.journal.Run)
	return func() {
		if p.checkpoints != nil {
			p.checkpoints.Finish()
		}
		stopJournal()
		p.keeper.Finish()
		p.keys.Close()
	}
}

// tryToken tries the token once. It returns an error for what only a human can fix, and nil for a
// missing token, which may still appear.
func (p *signing) tryToken(ctx context.Context, s *service.Service, logger hclog.Logger) error {
	ca := s.CA.Certificate()
	logger.Info("signing", "ca", ca.Subject.String(), "caNotAfter", ca.NotAfter, "token",
		s.Token.Token.String(), "key", s.Token.Key.String())
	err := p.keys.Healthy(ctx)
	if errors.Is(err, hsm.ErrPIN) && !s.InPod || errors.Is(err, hsm.ErrKey) {
		return err
	}
	if s.Token.AllowExtractable {
		logger.Warn("ALLOW_EXTRACTABLE_KEY is set: the CA's key need not be one that cannot " +
			"leave its token; this is for trials only")
	}
	return nil
}

// watches are what runs alongside the controller.
func (p *signing) watches() []func(context.Context) error {
	all := []func(context.Context) error{p.token.Run, p.keeper.Watch, p.expiry.Run,
		p.stuck.Run, p.rotator.Run, p.rotator.Watch,
		p.other.Run}
	if p.checkpoints != nil {
		all = append(all, p.checkpoints.Watch)
	}
	return all
}
