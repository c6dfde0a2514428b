package service

import (
	"context"
	"crypto/x509"

	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/kube"
)

// Next is the CA that a rotation leads to, loaded and checked.
type Next struct {
	CA        *issuer.CA
	Anchors   issuer.Anchors // to publish with those of the present CA; nil: none
	Token     hsm.Config     // names the token and the key
	algorithm x509.SignatureAlgorithm
}

// Key returns the next CA's key, which is not in touch with the token yet. It calls record before
// each test signature, unless record is nil.
func (n *Next) Key(record func(context.Context, hsm.ProbeTime) error) (*hsm.Key, error) {
	token := n.Token
	token.BeforeProbe = record
	return hsm.NewKey(token, n.CA.Certificate().PublicKey)
}

// Authority returns the next CA with its key.
func (n *Next) Authority(key issuer.Key) issuer.Authority {
	return issuer.Authority{CA: n.CA, Key: key, Algorithm: n.algorithm}
}

// loadNext loads the next CA if one is configured. Everything else is loaded already.
func (s *Service) loadNext(faults *setting.Faults) {
	n := s.NextCA
	switch {
	case len(n.Set) == 0 || faults.Has(n.Set...) || faults.Has("APPROVE"):
		return
	case s.Mode == kube.Shadow:
		faults.Addf(n.Set[0], "is set, and APPROVE is shadow, which signs nothing: remove it")
		return
	case n.CertFile == "":
		faults.Addf(n.Set[0], "is set, and NEXT_CA_CERT_FILE is not: name the certificate of the "+
			"next CA")
		return
	case s.Lease == nil && !faults.Has("LEADER_ELECT", "LEASE_NAMESPACE"):
		faults.Addf("NEXT_CA_CERT_FILE", "needs LEADER_ELECT=true: the lease holds the phase of a "+
			"rotation")
		return
	}
	if ca := s.LoadNextCA(faults); ca != nil && s.CA != nil {
		s.checkNext(ca, faults)
	}
}

// checkNext sets the next CA, and adds what is wrong with it to the faults.
func (s *Service) checkNext(ca *issuer.CA, faults *setting.Faults) {
	next := &Next{CA: ca, Token: s.NextToken(faults), algorithm: s.NextCA.Algorithm}
	next.Token.Signature = issuer.SignerOpts(next.algorithm, ca.Certificate().PublicKey)
	key, err := hsm.NewKey(next.Token, ca.Certificate().PublicKey)
	if err != nil {
		faults.Add("NEXT_CA_CERT_FILE", err)
		return
	}
	alone, err := issuer.New(next.Authority(key), nil) // signs nothing: only checks
	if err != nil {
		faults.Add("NEXT_SIGNATURE_ALGORITHM", err)
		return
	}
	if own, err := s.Key(nil); err == nil {
		faults.Add("NEXT_CA_CERT_FILE", alone.Next(s.Authority(own)))
	}
	if s.CheckpointPublic != nil && ca.Matches(s.CheckpointPublic) == nil {
		faults.Addf("CHECKPOINT_KEY_LABEL", "names the next CA's key: checkpoints need their own")
	}
	if s.Policy != nil {
		_, err := judge.LintRules(ca, s.Policy)
		faults.Add("NEXT_CA_CERT_FILE", err)
	}
	next.Anchors = s.loadNextAnchors(ca, faults)
	s.Next = next
}

// loadNextAnchors returns the certificates of NEXT_TRUST_BUNDLE_FILE, which must fit into one
// bundle with those of TRUST_BUNDLE_FILE; nil if none are published.
func (s *Service) loadNextAnchors(ca *issuer.CA, faults *setting.Faults) issuer.Anchors {
	const variable = "NEXT_TRUST_BUNDLE_FILE"
	file := s.NextCA.BundleFile
	switch {
	case file == "" && s.TrustBundleFile == "":
		return nil
	case file == "":
		faults.Addf(variable, "is not set, and TRUST_BUNDLE_FILE is: name the roots of the next "+
			"CA, which are published with those of the present one")
		return nil
	case s.TrustBundleFile == "":
		faults.Addf(variable, "is set, and TRUST_BUNDLE_FILE is not: set both, or none")
		return nil
	}
	anchors := s.LoadNextRoots(faults)
	requireTrust(variable, file, anchors, ca, faults)
	if s.Anchors != nil && anchors != nil {
		_, err := s.Anchors.With(anchors)
		faults.Add(variable, err)
	}
	return anchors
}
