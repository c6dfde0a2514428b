package check

import (
	"context"
	"errors"

	"hsm-signer/cmd/hsm-signer/internal/service"
	"hsm-signer/issuer"
	"hsm-signer/kube/trustbundle"
)

// checkTrustBundle checks that the trust anchors can be published, and are.
func checkTrustBundle(ctx context.Context, s *service.Service, report reporter) {
	const name = "trust anchors"
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	place := s.TrustBundlePlace()
	err := place.Holds(ctx, s.Anchors.PEM())
	for _, roots := range ofRotation(s) {
		if errors.Is(err, trustbundle.ErrOutdated) && place.Holds(ctx, roots.PEM()) == nil {
			err = nil
		}
	}
	switch {
	case err == nil:
		report(name, "published as "+place.String(), nil)
	case errors.Is(err, trustbundle.ErrNotServed) || errors.Is(err, trustbundle.ErrForeign):
		report(name, "", err)
	default: // "run" corrects it, or a permission is missing, which has a line of its own
		report(name, "not published yet: "+err.Error()+"; \"run\" publishes them while it leads",
			errNote)
	}
}

// ofRotation returns what else is published in some phase of a rotation.
func ofRotation(s *service.Service) []issuer.Anchors {
	if s.Next == nil {
		return nil
	}
	both, err := s.Anchors.With(s.Next.Anchors)
	if err != nil { // was reported when the configuration was loaded
		return []issuer.Anchors{s.Next.Anchors}
	}
	return []issuer.Anchors{both, s.Next.Anchors}
}
