package main

import (
	"fmt"
	"io"

	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// A judgement decides on a request as "run" does: by the policy, and then by what the CA and the
// lints allow.
type judgement struct {
	kube.Decider
	ca *issuer.CA
}

// Decide returns the verdict with nothing left to check.
func (j judgement) Decide(r *policy.Request, facts policy.Facts) policy.Verdict {
	verdict := j.Decider.Decide(r, facts)
	if grant, granted := verdict.(*policy.Grant); granted {
		if refusal := issuer.Lint(j.ca, grant); refusal != nil {
			return refusal
		}
	}
	return verdict
}

// judgement returns what decides by the policy without a token: under the CA of CA_CERT_FILE, or
// without that under a CA without constraints, which the notes say.
func (c *config) judgement(p *policy.Policy, faults *configFaults, notes io.Writer) judgement {
	ca := c.loadOptionalCA(faults)
	c.checkRules(p, ca, faults)
	c.noteCA(notes)
	return judgement{p, ca}
}

// noteCA says that the CA's constraints are not checked if CA_CERT_FILE is not set.
func (c *config) noteCA(notes io.Writer) {
	if c.caCertFile == "" {
		fmt.Fprintln(notes, "note: "+withoutCA)
	}
}

// withoutCA says what a judgement without CA_CERT_FILE does not check.
const withoutCA = "CA_CERT_FILE is not set, so the constraints of the CA were not checked; a CA without any was assumed"

// loadOptionalCA returns the CA of CA_CERT_FILE, or a generic one if that is not set.
func (c *config) loadOptionalCA(faults *configFaults) *issuer.CA {
	if c.caCertFile != "" {
		return c.loadCA(faults)
	}
	ca, err := issuer.GenericCA()
	faults.add("CA_CERT_FILE", err)
	return ca
}

// checkRules adds a fault for each rule of which the CA can issue nothing. It does nothing if the
// policy or the CA could not be loaded.
func (c *config) checkRules(p *policy.Policy, ca *issuer.CA, faults *configFaults) {
	if p != nil && ca != nil {
		_, err := lintRules(ca, p)
		faults.add("POLICY_FILE", err)
	}
}

// lintRules returns the warnings about a policy under a CA, and an error if the CA can issue
// nothing of a rule.
func lintRules(ca *issuer.CA, p *policy.Policy) (warnings []string, err error) {
	warnings, err = issuer.LintRules(ca, p.Offers())
	return append(p.Warnings(), warnings...), err
}

// currentCA returns the CA that certificates are issued under now, or would be.
func (p *parts) currentCA() *issuer.CA {
	if p.issuer != nil {
		return p.issuer.CA()
	}
	return p.ca
}

// replaceCA returns what replaces the CA, unless it could issue nothing of a rule of the policy in
// force.
func (p *parts) replaceCA(current *policy.Current) func(*issuer.CA) error {
	return func(ca *issuer.CA) error {
		if _, err := lintRules(ca, current.Policy()); err != nil {
			return err
		}
		return p.issuer.Replace(ca)
	}
}
