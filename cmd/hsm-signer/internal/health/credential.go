package health

import (
	"fmt"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/credential"
)

// A Credential for the API server knows how it stands.
type Credential interface {
	Expiries() []credential.Expiry
	Refusal() error // why the changed kubeconfig is refused
}

// credentialPart returns the state of the credential for the API server. It is not ready when it
// has expired, and a refused kubeconfig is only a remark.
func credentialPart(source Credential, now time.Time) Part {
	p := Part{Name: "credential"}
	for _, e := range source.Expiries() {
		switch {
		case e.Expired(now):
			p.Err = fmt.Errorf("%s: renew it: docs/credentials.md", e.At(now))
		case e.Soon(now):
			p.Note = "but renew it: " + e.At(now)
		}
	}
	if err := source.Refusal(); err != nil {
		p.Note = fmt.Sprintf("but KUBECONFIG in its present form is refused: %v", err)
	}
	return p
}
