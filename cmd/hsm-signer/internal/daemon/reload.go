package daemon

import (
	"context"
	"fmt"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/issuer"
	"hsm-signer/policy"
)

// A policyReloader applies a changed policy file.
type policyReloader struct {
	watchedFile[*policy.Policy]
	config  *config.Config
	current *policy.Current
	ca      func() *issuer.CA
	metrics *metrics.Metrics
	changed func() // another policy is in force
}

func newPolicyReloader(c *config.Config, current *policy.Current, ca func() *issuer.CA,
	m *metrics.Metrics,
	logger hclog.Logger) *policyReloader {
	r := &policyReloader{config: c, current: current, ca: ca, metrics: m}
	r.watchedFile = watchedFile[*policy.Policy]{
		path: c.PolicyFile, read: c.ReadPolicySources, parse: c.ParsePolicySources, take: r.enforce,
		name: "the policy file", stays: "the policy before it stays in force", reason: "PolicyRefused",
		logger: logger, refused: m.PolicyFileRefused,
	}
	return r
}

// watch checks the files until the context ends. A built-in policy without blocked keys does not
// change.
func (r *policyReloader) watch(ctx context.Context) error {
	if _, builtIn := policy.BuiltIn(r.config.PolicyFile); builtIn &&
		r.config.BlockedKeysFile == "" {
		<-ctx.Done()
		return nil
	}
	return r.watchedFile.watch(ctx)
}

// enforce puts another policy in force.
func (r *policyReloader) enforce(fresh *policy.Policy) error {
	if fresh.Hash() != r.current.Policy().Hash() {
		warnings, err := config.LintRules(r.ca(), fresh)
		if err != nil {
			return err
		}
		r.logger.Warn("the policy has changed and is in force", "file", r.path,
			"before",
			r.current.Policy().Hash(), "now", fresh.Hash(), "rules", fresh.Rules(), "blockedKeys", fresh.BlockedKeys().Len())
		r.current.Replace(fresh)
		r.metrics.PolicyInForce(fresh)
		logWarnings(r.logger, warnings)
		r.changed()
	}
	return nil
}

// logWarnings logs very wide rules, and combinations that can never be issued.
func logWarnings(logger hclog.Logger, warnings []string) {
	for _, warning := range warnings {
		logger.Warn("the policy is wide", "warning", warning)
	}
}

// state returns which policy is in force, and what is wrong with the file, if anything. A wrong
// file does not make the service unready.
func (r *policyReloader) state() string {
	text := fmt.Sprintf("in force %.12s", r.current.Policy().Hash())
	if err := r.refusal(); err != nil {
		text += fmt.Sprintf("; but the file as it is now is refused: %v", err)
	}
	return text
}

// currentCA returns what returns the CA that certificates are issued under now, or would be. The
// parts are nil in a shadow.
func currentCA(s *config.Service, p *parts) func() *issuer.CA {
	if p != nil {
		return p.issuer.CA
	}
	return func() *issuer.CA { return s.CA }
}

// replaceCA returns what replaces the CA, unless it could issue nothing of a rule of the policy in
// force.
func (p *parts) replaceCA(current *policy.Current) func(*issuer.CA) error {
	return func(ca *issuer.CA) error {
		if _, err := config.LintRules(ca, current.Policy()); err != nil {
			return err
		}
		return p.issuer.Replace(ca)
	}
}
