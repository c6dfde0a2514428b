package reload

import (
	"fmt"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/issuer"
	"hsm-signer/policy"
)

// A Replacer issues under a CA, which it replaces.
type Replacer interface {
	CA
	Replace(ca *issuer.CA) error
}

// A truster has published trust anchors.
type truster interface {
	// replace calls by with the CA if the anchors trust it, and returns an error if they do not.
	replace(fresh *issuer.CA, by func(*issuer.CA) error) error
}

// A Certificate applies another certificate of the CA when its file changes: a renewed one with the
// same key and name, or another chain. Anything else in the file is refused.
type Certificate struct {
	watchedFile[*issuer.CA]
	issuer  Replacer
	policy  *policy.Current
	anchors truster
}

// NewCertificate returns what replaces the CA when CA_CERT_FILE changes. Another certificate must
// fit the policy and be trusted by the anchors; nil if none are published. [Certificate.Watch]
// starts it.
func NewCertificate(path string, is Replacer, current *policy.Current, anchors *Anchors,
	events Events, m *metrics.Metrics, logger hclog.Logger) *Certificate {
	r := &Certificate{issuer: is, policy: current, anchors: anchors}
	r.watchedFile = watchedFile[*issuer.CA]{
		file: r, path: path, name: "the file of the CA's certificate",
		stays: "the certificate before it stays in use", reason: "CARefused",
		refused: m.CARefused, events: events, logger: logger,
	}
	return r
}

// NewNextCertificate is [NewCertificate] for NEXT_CA_CERT_FILE of a rotation, and the anchors of
// NEXT_TRUST_BUNDLE_FILE. A refusal shows as the remark next_ca_file, and not in the gauge of the
// CA's file.
func NewNextCertificate(path string, is Replacer, current *policy.Current, anchors issuer.Anchors,
	events Events, m *metrics.Metrics, logger hclog.Logger) *Certificate {
	r := NewCertificate(path, is, current, nil, events, m, logger)
	r.anchors = nextAnchors(anchors)
	r.name = "the file of the next CA's certificate"
	r.refused = prometheus.NewGauge(prometheus.GaugeOpts{}) // shown nowhere
	return r
}

func (r *Certificate) read() ([]byte, error) { return config.CARules.Read(r.path) }

func (r *Certificate) parse(text []byte) (*issuer.CA, error) { return issuer.ParseCA(text) }

// apply puts another certificate of the CA in use, unless the issuer refuses it, it could issue
// nothing of a rule of the policy in force, or the published trust anchors do not trust it.
func (r *Certificate) apply(fresh *issuer.CA) error {
	if fresh.Equal(r.issuer.CA()) {
		return nil
	}
	if _, err := judge.LintRules(fresh, r.policy.Policy()); err != nil {
		return err
	}
	if err := r.anchors.replace(fresh, r.issuer.Replace); err != nil {
		return err
	}
	r.logger.Warn("the CA's certificate was replaced, and is in use", "file", r.path, "notAfter",
		fresh.Certificate().NotAfter)
	return nil
}

// State returns what is wrong with the file, if anything. A wrong file does not make the service
// unready.
func (r *Certificate) State() string {
	if err := r.Refusal(); err != nil {
		return fmt.Sprintf("but CA_CERT_FILE in its present form is refused: %v", err)
	}
	return ""
}
