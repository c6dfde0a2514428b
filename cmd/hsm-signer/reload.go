package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/policy"
)

// reloadInterval is the time between two looks at the policy's file. Looking, and not
// waiting to be told, also sees the file of a ConfigMap, which is swapped behind a link.
const reloadInterval = 2 * time.Second

// A reloader puts a changed policy file in force. A file that cannot be read or has a mistake is
// refused, visibly, and the policy before it stays.
type reloader struct {
	config  *config
	current *policy.Current
	logger  hclog.Logger
	metrics *metrics
	warn    func(reason, message string) // as an event
	changed func()                       // another policy is in force

	text    []byte // what the last look read
	settled bool   // it is in force, or refused

	mu    sync.Mutex
	fault error // why the file as it is now is not in force
}

// watch looks at the file until the context ends. A built-in policy does not change.
func (r *reloader) watch(ctx context.Context) error {
	_, builtIn := policy.BuiltIn(r.config.policyFile)
	ticker := time.NewTicker(reloadInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if !builtIn {
				r.look()
			}
		}
	}
}

// look compares the file with the policy in force. A change comes into force when two looks
// find the same: a file that is being written may read as a policy with fewer rules.
func (r *reloader) look() {
	text, err := r.config.readPolicy()
	same := err == nil && bytes.Equal(text, r.text)
	if same && r.settled {
		return
	}
	r.text, r.settled = text, false
	var fresh *policy.Policy
	if err == nil {
		fresh, err = r.config.parsePolicy(text)
	}
	if err == nil && same {
		r.enforce(fresh)
	}
	r.settled = same
	r.note(err)
}

// enforce puts another policy in force.
func (r *reloader) enforce(fresh *policy.Policy) {
	if fresh.Hash() != r.current.Policy().Hash() {
		r.logger.Warn("the policy has changed and is in force", "file", r.config.policyFile,
			"before", r.current.Policy().Hash(), "now", fresh.Hash(), "rules", fresh.Rules())
		r.current.Replace(fresh)
		r.metrics.policyInForce(fresh)
		logWarnings(r.logger, fresh)
		r.changed()
	}
}

// note keeps how the file stands, and logs each change.
func (r *reloader) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil && (r.fault == nil || r.fault.Error() != err.Error()):
		r.logger.Error("the policy file is refused; the policy before it stays in force", "file", r.config.policyFile, "inForce", r.current.Policy().Hash(), "error", err)
		r.warn("PolicyRefused", "the policy file as it is now is refused, and the policy before it stays in force; the log says why")
	case err == nil && r.fault != nil:
		r.logger.Info("the policy file is well again", "file", r.config.policyFile)
	}
	r.fault = err
	r.metrics.policyFileRefused(err != nil)
}

// logWarnings says loudly what is as wide as it can be.
func logWarnings(logger hclog.Logger, p *policy.Policy) {
	for _, warning := range p.Warnings() {
		logger.Warn("the policy is wide", "warning", warning)
	}
}

// state says which policy is in force, and what is wrong with the file if
// anything is. It does not keep the service from being ready.
func (r *reloader) state() string {
	text := fmt.Sprintf("in force %.12s", r.current.Policy().Hash())
	if err := r.refused(); err != nil {
		text += fmt.Sprintf("; but the file as it is now is refused: %v", err)
	}
	return text
}

// refused answers why the file as it is now is not in force, and nil when it is.
func (r *reloader) refused() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fault
}
