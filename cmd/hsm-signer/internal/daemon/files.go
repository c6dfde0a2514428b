package daemon

import (
	"context"

	"hsm-signer/cmd/hsm-signer/internal/reload"
	"hsm-signer/issuer"
	"hsm-signer/policy"
)

// files are those of the configuration that are read again while the process runs.
type files struct {
	policy  *reload.Policy
	ca      *reload.Certificate // nil in a shadow
	next    *reload.Certificate // nil without NEXT_CA_CERT_FILE
	anchors *reload.Anchors     // nil without TRUST_BUNDLE_FILE, and in a shadow
}

// newFiles returns the files, which replace the current policy and the CA when they change.
func (d *Daemon) newFiles(current *policy.Current) files {
	s, m, logger := d.service, d.metrics, d.logger.Named("ca")
	policyOf := func(ca, next reload.CA) *reload.Policy {
		return reload.NewPolicy(s.Config, current, ca, next, d.controller, m,
			d.logger.Named("policy"))
	}
	if d.signing == nil {
		return files{policy: policyOf(fixedCA{s.CA}, nil)}
	}
	var f files
	ca := d.signing.configured(s.CA)
	if s.Anchors != nil {
		f.anchors = reload.NewAnchors(s.TrustBundleFile, s.Anchors, ca, d.controller, m, logger)
	}
	f.ca = reload.NewCertificate(s.CACertFile, ca, current, f.anchors, d.controller, m, logger)
	if s.Next == nil {
		f.policy = policyOf(ca, nil)
		return f
	}
	next := d.signing.configured(s.Next.CA)
	f.policy = policyOf(ca, next)
	f.next = reload.NewNextCertificate(s.NextCA.CertFile, next, current, s.Next.Anchors,
		d.controller, m, logger)
	return f
}

// watches are what checks the files.
func (f files) watches() []func(context.Context) error {
	all := []func(context.Context) error{f.policy.Watch}
	if f.ca != nil {
		all = append(all, f.ca.Watch)
	}
	if f.next != nil {
		all = append(all, f.next.Watch)
	}
	if f.anchors != nil {
		all = append(all, f.anchors.Watch)
	}
	return all
}

// A fixedCA is one that is not replaced.
type fixedCA struct{ ca *issuer.CA }

// CA is [reload.CA]'s.
func (f fixedCA) CA() *issuer.CA { return f.ca }
