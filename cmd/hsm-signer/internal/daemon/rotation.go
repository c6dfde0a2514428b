package daemon

import (
	"context"
	"crypto/x509"
	"maps"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/rotation"
	"hsm-signer/cmd/hsm-signer/internal/rotator"
	"hsm-signer/cmd/hsm-signer/internal/service"
	"hsm-signer/cmd/hsm-signer/internal/witness"
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
)

// newRotator returns what carries out a rotation of the CA. Its issuer and the next CA's key are
// still to be set.
func newRotator(s *service.Service, j *journal.Journal, w *witness.Witness,
	logger hclog.Logger) *rotator.Rotator {
	keys := rotation.Keys{CA: s.CA.KeySHA256()}
	if s.Next != nil {
		keys.Next = s.Next.CA.KeySHA256()
	}
	return rotator.New(rotator.Config{
		Keys: keys, Elected: s.Lease != nil, Journal: j, TrustTime: s.RotationTrustTime,
		Lifetime: s.Lifetime, Ahead: s.Clock.Ahead, Logger: logger,
		Usage: func(ctx context.Context, cas []*x509.Certificate, before time.Time) (expiry.Usage,
			error) {
			return expiry.FindUsage(ctx, s.StateDir, s.Client, time.Now(), cas, before)
		},
		Others: func() []string { return w.Others(time.Now().Add(-s.Lifetime)) },
	})
}

// A configuredCA is the CA of a file of the configuration, whether or not it signs now.
type configuredCA struct {
	*issuer.Issuer
	key   rotation.Key
	steps steps
}

// steps are those of a rotation. It refuses a certificate that clients may not trust yet.
type steps interface {
	Replace(fresh *issuer.CA, replace func(*issuer.CA) error) error
}

// configured returns the CA of a file.
func (p *signing) configured(ca *issuer.CA) configuredCA {
	return configuredCA{p.issuer, ca.KeySHA256(), p.rotator}
}

// CA is [reload.CA]'s.
func (c configuredCA) CA() *issuer.CA { return c.CAOf(c.key) }

// Replace is [issuer.Issuer.Replace], of this CA alone: the file must not come to hold the other
// one's certificate.
func (c configuredCA) Replace(fresh *issuer.CA) error {
	if err := fresh.Matches(c.CA().Certificate().PublicKey); err != nil {
		return err
	}
	return c.steps.Replace(fresh, c.Issuer.Replace)
}

// Annotations are those of all parts of the process.
func (p process) Annotations() map[string]string {
	all := map[string]string{}
	maps.Copy(all, p.Witness.Annotations())
	maps.Copy(all, p.rotator.Annotations())
	return all
}

// Heard shows the annotations of the lease to all parts of the process.
func (p process) Heard(annotations map[string]string) error {
	if err := p.Witness.Heard(annotations); err != nil {
		return err
	}
	return p.rotator.Heard(annotations)
}

// Written shows what was written to the lease to the part that waits for it.
func (p process) Written(annotations map[string]string) { p.rotator.Written(annotations) }
