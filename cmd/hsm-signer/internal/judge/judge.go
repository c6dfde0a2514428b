// Package judge decides on requests offline, as "run" would: by the policy, and by what the CA and the
// lints allow. What a request does not say about its requester is assumed.
package judge

import (
	"fmt"
	"io"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// A Judge decides on a request as "run" does: by the policy, and then by what the CA and the
// lints allow.
type Judge struct {
	kube.Decider
	Ca *issuer.CA
}

// Decide returns the verdict with nothing left to check.
func (j Judge) Decide(r *policy.Request, facts policy.Facts) policy.Verdict {
	verdict := j.Decider.Decide(r, facts)
	if grant, granted := verdict.(*policy.Grant); granted {
		if refusal := issuer.Lint(j.Ca, grant); refusal != nil {
			return refusal
		}
	}
	return verdict
}

// New returns what decides by the policy without a token: under the CA of CA_CERT_FILE, or
// without that under a CA without constraints, which the notes say.
func New(c *config.Config, p *policy.Policy, faults *config.Faults, notes io.Writer) Judge {
	ca := c.LoadOptionalCA(faults)
	c.CheckRules(p, ca, faults)
	NoteCA(c, notes)
	return Judge{p, ca}
}

// NoteCA says that the CA's constraints are not checked if CA_CERT_FILE is not set.
func NoteCA(c *config.Config, notes io.Writer) {
	if c.CACertFile == "" {
		fmt.Fprintln(notes, "note: "+WithoutCA)
	}
}

// WithoutCA says what a judgement without CA_CERT_FILE does not check.
const WithoutCA = "CA_CERT_FILE is not set, so the constraints of the CA were not checked; a CA without any was assumed"
