package judge

import (
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/issuer"
	"hsm-signer/policy"
)

// CheckRules adds a fault for each rule of which the CA can issue nothing. It does nothing if the
// policy or the CA could not be loaded.
func CheckRules(p *policy.Policy, ca *issuer.CA, faults *setting.Faults) {
	if p != nil && ca != nil {
		_, err := LintRules(ca, p)
		faults.Add("POLICY_FILE", err)
	}
}

// LintRules returns the warnings about a policy under a CA, and an error if the CA can issue
// nothing of a rule.
func LintRules(ca *issuer.CA, p *policy.Policy) (warnings []string, err error) {
	warnings, err = issuer.LintRules(ca, p.Offers())
	return append(p.Warnings(), warnings...), err
}
