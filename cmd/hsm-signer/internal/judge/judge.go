// Package judge decides on requests and rules offline, as "run" would: by the policy, and by what
// the CA and the lints allow. What a request does not say about its requester is assumed.
package judge

import (
	"fmt"
	"io"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/policy"
)

// A Judge decides as "run" does: by the policy, and then by what the CA and the lints allow.
type Judge struct {
	kube.Decider
	CA *issuer.CA
}

// Decide returns the final verdict.
func (j Judge) Decide(r *policy.Request, facts policy.Facts) policy.Verdict {
	verdict := j.Decider.Decide(r, facts)
	if grant, granted := verdict.(*policy.Grant); granted {
		if refusal := issuer.Lint(j.CA, grant); refusal != nil {
			return refusal
		}
	}
	return verdict
}

// New returns a judge with the policy and the CA of CA_CERT_FILE. If that is not set, the judge has
// a CA without constraints, and reports it in notes.
func New(c *config.Config, p *policy.Policy, faults *setting.Faults, notes io.Writer) Judge {
	ca := c.LoadOptionalCA(faults)
	CheckRules(p, ca, faults)
	NoteCA(c, notes)
	return Judge{p, ca}
}

// NoteCA says that the CA's constraints are not checked if CA_CERT_FILE is not set.
func NoteCA(c *config.Config, notes io.Writer) {
	if c.CACertFile == "" {
		fmt.Fprintln(notes, "note: "+WithoutCA)
	}
}

// WithoutCA says what is not checked without CA_CERT_FILE.
const WithoutCA = "CA_CERT_FILE is not set, so the constraints of the CA were not checked; a CA " +
	"without any was assumed"
