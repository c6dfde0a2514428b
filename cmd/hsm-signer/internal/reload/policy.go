package reload

import (
	"context"
	"fmt"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/policy"
)

// A PolicyUser is the controller as a change of the policy concerns it.
type PolicyUser interface {
	Events
	LookAgain() // another policy is in force
}

// A Policy applies the changed files of the policy.
type Policy struct {
	watchedFile[*policy.Policy]
	config  *config.Config
	current *policy.Current
	ca      CA
	next    CA // of a rotation, which may sign at any moment; nil: none
	user    PolicyUser
	metrics *metrics.Metrics
}

// NewPolicy returns what replaces the current policy when its files change. Another policy must fit
// the CA, and the next CA of a rotation; nil if there is none. [Policy.Watch] starts it.
func NewPolicy(c *config.Config, current *policy.Current, ca, next CA, user PolicyUser,
	m *metrics.Metrics, logger hclog.Logger) *Policy {
	r := &Policy{config: c, current: current, ca: ca, next: next, user: user, metrics: m}
	r.watchedFile = watchedFile[*policy.Policy]{
		file: r, path: c.PolicyFile, name: "the policy file",
		stays: "the policy before it stays in force", reason: "PolicyRefused",
		refused: m.FileRefused, events: user, logger: logger,
	}
	return r
}

// Watch checks the files until the context ends. A built-in policy without blocked keys does not
// change.
func (r *Policy) Watch(ctx context.Context) error {
	if _, builtIn := policy.BuiltIn(r.config.PolicyFile); builtIn &&
		r.config.BlockedKeysFile == "" {
		<-ctx.Done()
		return nil
	}
	return r.watchedFile.Watch(ctx)
}

func (r *Policy) read() ([]byte, error) { return r.config.ReadPolicySources() }

func (r *Policy) parse(text []byte) (*policy.Policy, error) {
	return r.config.ParsePolicySources(text)
}

// apply puts another policy in force.
func (r *Policy) apply(fresh *policy.Policy) error {
	before := r.current.Policy()
	if fresh.Hash() == before.Hash() {
		return nil
	}
	warnings, err := judge.LintRules(r.ca.CA(), fresh)
	if err == nil && r.next != nil {
		_, err = judge.LintRules(r.next.CA(), fresh)
	}
	if err != nil {
		return err
	}
	r.logger.Warn("the policy has changed and is in force", "file", r.path,
		"before", before.Hash(), "now", fresh.Hash(), "rules", fresh.Rules(),
		"blockedKeys", fresh.BlockedKeys().Len())
	r.current.Replace(fresh)
	r.metrics.PolicyInForce(fresh)
	LogWarnings(r.logger, warnings)
	r.user.LookAgain()
	return nil
}

// LogWarnings logs the warnings about a policy: very wide rules, and combinations that can never be
// issued.
func LogWarnings(logger hclog.Logger, warnings []string) {
	for _, warning := range warnings {
		logger.Warn("the policy is wide", "warning", warning)
	}
}

// State returns which policy is in force, and what is wrong with the file, if anything. A wrong
// file does not make the service unready.
func (r *Policy) State() string {
	text := fmt.Sprintf("in force %.12s", r.current.Policy().Hash())
	if err := r.Refusal(); err != nil {
		text += fmt.Sprintf("; but the file as it is now is refused: %v", err)
	}
	return text
}
