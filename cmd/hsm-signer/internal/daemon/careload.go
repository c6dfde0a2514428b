package daemon

import (
	"fmt"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/issuer"
)

// A caReloader applies another certificate of the CA when its file changes: a renewed one with the
// same key and name, or another chain. Anything else in the file is refused.
type caReloader struct {
	watchedFile[*issuer.CA]
	current func() *issuer.CA
	replace func(*issuer.CA) error
}

func newCAReloader(file string, current func() *issuer.CA, replace func(*issuer.CA) error,
	m *metrics.Metrics, logger hclog.Logger) *caReloader {
	r := &caReloader{current: current, replace: replace}
	r.watchedFile = watchedFile[*issuer.CA]{
		path: file, read: func() ([]byte,
			error) {
			return config.CARules.Read(file)
		}, parse: issuer.ParseCA, take: r.use,
		name: "the file of the CA's certificate", stays: "the certificate before it stays in use", reason: "CARefused",
		logger: logger, refused: m.CAFileRefused,
	}
	return r
}

// use applies another certificate of the CA, unless the issuer refuses it.
func (r *caReloader) use(fresh *issuer.CA) error {
	if fresh.Equal(r.current()) {
		return nil
	}
	if err := r.replace(fresh); err != nil {
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
