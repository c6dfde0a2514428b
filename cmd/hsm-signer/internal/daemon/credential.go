package daemon

import (
	"context"
	"fmt"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/credential"
	"hsm-signer/cmd/hsm-signer/internal/status"
)

// A credentialState knows how the credential for the API server stands.
type credentialState interface {
	Expiries() []credential.Expiry
	Refusal() error // why the changed kubeconfig is refused
}

// watchCredential applies a changed credential until the context ends.
func (d *Daemon) watchCredential(ctx context.Context) error {
	return d.service.Credential.Watch(ctx, d.controller, d.logger.Named("credential"))
}

// credentialPart returns the state of the credential for the API server. It is not ready when it
// has expired, and a refused kubeconfig is only a remark.
func credentialPart(source credentialState, now time.Time) part {
	p := part{name: "credential"}
	for _, e := range source.Expiries() {
		switch {
		case e.Expired(now):
			p.err = fmt.Errorf("%s: renew it: docs/credentials.md", e.At(now))
		case e.Soon(now):
			p.note = "but renew it: " + e.At(now)
		}
	}
	if err := source.Refusal(); err != nil {
		p.note = fmt.Sprintf("but KUBECONFIG in its present form is refused: %v", err)
	}
	return p
}

// addCredential adds the credential for the API server to the status page.
func (s *statusPage) addCredential(p *status.Page) {
	source := s.health.credential
	expiries := source.Expiries()
	p.Credential = credential.Describe(expiries, p.Now)
	for _, e := range expiries {
		if e.Soon(p.Now) && !e.Expired(p.Now) {
			p.Hints = append(p.Hints, "The credential for the API server must be renewed: "+
				e.At(p.Now)+". docs/runbook.md: HSMSignerCredentialExpiring")
		}
	}
}
