package daemon

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/issuer"
)

// A renewed CA certificate is reloaded. One that the issuer refuses, or that is none, is reported, and
// the former one stays.
func TestCertificateOfTheCAIsReloaded(t *testing.T) {
	ca := fixture.NewCA(t)
	file := filepath.Join(t.TempDir(), "ca.crt")
	write := func(der []byte) {
		t.Helper()
		if err := os.WriteFile(file,
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(ca.Certificate.Raw)
	current, err := issuer.ParseCA(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: ca.Certificate.Raw}))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	var taken []*issuer.CA
	var events []string
	replace := func(fresh *issuer.CA) error {
		if err := fresh.Matches(ca.Key.Public()); err != nil {
			return errors.New("another key")
		}
		taken, current = append(taken, fresh), fresh
		return nil
	}
	m := metrics.New()
	refused := func() bool { return testutil.ToFloat64(m.CARefused) == 1 }
	r := newCAReloader(file, func() *issuer.CA { return current }, replace, m,
		hclog.New(&hclog.LoggerOptions{Output: &log}))
	r.warn = func(reason, _ string) { events = append(events, reason) }
	looks := func() { r.look(); r.look(); r.look() }
	if looks(); len(taken) > 0 || log.Len() > 0 {
		t.Errorf("the certificate in use was taken up again: %s", &log)
	}
	renewed := fixture.Certify(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Test CA"}, NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{1},
	}, nil, ca.Key.Public(), ca.Key)
	write(renewed.Raw)
	if r.look(); len(taken) > 0 {
		t.Error("it was taken up at the first look, while it may still be written")
	}
	if looks(); len(taken) != 1 || !taken[0].Certificate().Equal(renewed) || r.state() != "" {
		t.Errorf("%d were taken up; state: %s", len(taken), r.state())
	}
	write(fixture.NewCA(t).Certificate.Raw)
	if looks(); len(taken) != 1 || !refused() || !strings.Contains(r.state(), "another key") {
		t.Errorf("another CA: state: %s", r.state())
	}
	write([]byte("x"))
	if looks(); !refused() || !strings.Contains(r.state(), "certificate 1") ||
		strings.Count(log.String(), "is refused") != 2 || len(events) != 2 {
		t.Errorf("no certificate: state: %s; events %v; log: %s", r.state(), events, &log)
	}
	write(renewed.Raw)
	if looks(); refused() || r.state() != "" || len(taken) != 1 {
		t.Errorf("well again: state: %s", r.state())
	}
}
