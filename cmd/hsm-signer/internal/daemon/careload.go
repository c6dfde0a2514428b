package daemon

import (
	"fmt"
	"io"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/issuer"
	"hsm-signer/policy"
)

// A caReplacer issues under a CA, which can be replaced.
type caReplacer interface {
	caHolder
	Replace(ca *issuer.CA) error
}

// A caReloader applies another certificate of the CA when its file changes: a renewed one with the
// same key and name, or another chain. Anything else in the file is refused.
type caReloader struct {
	watchedFile[*issuer.CA]
	issuer  caReplacer
	policy  *policy.Current
	trusted func(*issuer.CA) error // by the published trust anchors; nil if there are none
}

func newCAReloader(file string, is caReplacer, current *policy.Current, bundle *bundlePublisher,
	events eventSender, m *metrics.Metrics, logger hclog.Logger) *caReloader {
	r := &caReloader{issuer: is, policy: current, trusted: bundle.trust}
	r.watchedFile = watchedFile[*issuer.CA]{
		file: r, path: file, name: "the file of the CA's certificate",
		stays: "the certificate before it stays in use", reason: "CARefused",
		refused: m.CARefused, events: events, logger: logger,
	}
	return r
}

// newNextCAReloader is newCAReloader for the next CA of a rotation. A refusal shows as the remark
// next_ca_file, and not in the gauge of the CA's file.
func newNextCAReloader(file string, is caReplacer, current *policy.Current, bundle *bundlePublisher,
	events eventSender, m *metrics.Metrics, logger hclog.Logger) *caReloader {
	r := newCAReloader(file, is, current, bundle, events, m, logger)
	r.trusted = bundle.trustNext
	r.name = "the file of the next CA's certificate"
	r.refused = prometheus.NewGauge(prometheus.GaugeOpts{}) // shown nowhere
	return r
}

func (r *caReloader) read() ([]byte, error) { return config.CARules.Read(r.path) }

func (r *caReloader) parse(text []byte) (*issuer.CA, error) { return issuer.ParseCA(text) }

// apply puts another certificate of the CA in use, unless the issuer refuses it, it could issue
// nothing of a rule of the policy in force, or the published trust anchors do not trust it.
func (r *caReloader) apply(fresh *issuer.CA) error {
	if fresh.Equal(r.issuer.CA()) {
		return nil
	}
	if _, err := config.LintRules(fresh, r.policy.Policy()); err != nil {
		return err
	}
	if err := r.trusted(fresh); err != nil {
		return err
	}
	if err := r.issuer.Replace(fresh); err != nil {
		return err
	}
	r.logger.Warn("the CA's certificate was replaced, and is in use", "file", r.path, "notAfter",
		fresh.Certificate().NotAfter)
	return nil
}

// state returns what is wrong with the file, if anything. A wrong file does not make the service
// unready.
func (r *caReloader) state() string {
	if err := r.refusal(); err != nil {
		return fmt.Sprintf("but CA_CERT_FILE in its present form is refused: %v", err)
	}
	return ""
}

// writeNext writes for /readyz what is wrong with the file of the next CA, if anything. A nil
// reloader has no file.
func (r *caReloader) writeNext(w io.Writer, prefix string) {
	if r == nil {
		return
	}
	if err := r.refusal(); err != nil {
		fmt.Fprintf(w, "%snext CA: NEXT_CA_CERT_FILE in its present form is refused, and the "+
			"certificate before it stays in use: %v\n", prefix, err)
	}
}
