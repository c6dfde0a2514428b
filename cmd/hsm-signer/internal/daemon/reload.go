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

// A policyUser is the controller as a change of the policy concerns it.
type policyUser interface {
	eventSender
	LookAgain() // another policy is in force
}

// A policyReloader applies a changed policy file.
type policyReloader struct {
	watchedFile[*policy.Policy]
	config  *config.Config
	current *policy.Current
	ca      caHolder
	next    *issuer.CA // of a rotation, which may sign at any moment; nil: none
	user    policyUser
	metrics *metrics.Metrics
}

func newPolicyReloader(c *config.Config, current *policy.Current, ca caHolder, user policyUser,
	m *metrics.Metrics, logger hclog.Logger) *policyReloader {
	r := &policyReloader{config: c, current: current, ca: ca, user: user, metrics: m}
	r.watchedFile = watchedFile[*policy.Policy]{
		file: r, path: c.PolicyFile, name: "the policy file",
		stays: "the policy before it stays in force", reason: "PolicyRefused",
		refused: m.FileRefused, events: user, logger: logger,
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

func (r *policyReloader) read() ([]byte, error) { return r.config.ReadPolicySources() }

func (r *policyReloader) parse(text []byte) (*policy.Policy, error) {
	return r.config.ParsePolicySources(text)
}

// apply puts another policy in force.
func (r *policyReloader) apply(fresh *policy.Policy) error {
	before := r.current.Policy()
	if fresh.Hash() == before.Hash() {
		return nil
	}
	warnings, err := config.LintRules(r.ca.CA(), fresh)
	if err == nil && r.next != nil {
		_, err = config.LintRules(r.next, fresh)
	}
	if err != nil {
		return err
	}
	r.logger.Warn("the policy has changed and is in force", "file", r.path,
		"before", before.Hash(), "now", fresh.Hash(), "rules", fresh.Rules(),
		"blockedKeys", fresh.BlockedKeys().Len())
	r.current.Replace(fresh)
	r.metrics.PolicyInForce(fresh)
	logWarnings(r.logger, warnings)
	r.user.LookAgain()
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
