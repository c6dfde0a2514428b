package reload

import (
	"bytes"
	"crypto"
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
	"hsm-signer/internal/must"
	"hsm-signer/issuer"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// A replacedCA is a CA that is replaced by any with the same key.
type replacedCA struct {
	ca    *issuer.CA
	key   crypto.PublicKey
	taken []*issuer.CA
}

func (r *replacedCA) CA() *issuer.CA { return r.ca }

func (r *replacedCA) Replace(fresh *issuer.CA) error {
	if err := fresh.Matches(r.key); err != nil {
		return errors.New("another key")
	}
	r.taken, r.ca = append(r.taken, fresh), fresh
	return nil
}

// A renewed CA certificate is reloaded. One that the issuer refuses, or that is none, is reported,
// and the former one stays.
func TestCertificateOfTheCAIsReloaded(t *testing.T) {
	ca := fixture.NewCA(t)
	file := filepath.Join(t.TempDir(), "ca.crt")
	write := func(der []byte) {
		t.Helper()
		must.OK(t, os.WriteFile(file,
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	}
	write(ca.Certificate.Raw)
	current, err := issuer.ParseCA(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: ca.Certificate.Raw}))
	must.OK(t, err)
	var log bytes.Buffer
	is := &replacedCA{ca: current, key: ca.Key.Public()}
	m, sent := metrics.New(), &sentEvents{}
	refused := func() bool { return testutil.ToFloat64(m.CARefused) == 1 }
	r := NewCertificate(file, is, policy.NewCurrent(builtInPolicy(t)), nil, sent, m,
		hclog.New(&hclog.LoggerOptions{Output: &log}))
	looks := func() { r.look(); r.look(); r.look() }
	if looks(); len(is.taken) > 0 || log.Len() > 0 {
		t.Errorf("the certificate in use was taken up again: %s", &log)
	}
	renewed := fixture.Certify(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Test CA"},
		NotAfter: time.Now().Add(48 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
		IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte{1},
	}, nil, ca.Key.Public(), ca.Key)
	write(renewed.Raw)
	if r.look(); len(is.taken) > 0 {
		t.Error("it was taken up at the first look, while it may still be written")
	}
	if looks(); len(is.taken) != 1 || !is.taken[0].Certificate().Equal(renewed) || r.State() != "" {
		t.Errorf("%d were taken up; state: %s", len(is.taken), r.State())
	}
	write(fixture.NewCA(t).Certificate.Raw)
	if looks(); len(is.taken) != 1 || !refused() || !strings.Contains(r.State(), "another key") {
		t.Errorf("another CA: state: %s", r.State())
	}
	write([]byte("x"))
	if looks(); !refused() || !strings.Contains(r.State(), "certificate 1") ||
		strings.Count(log.String(), "is refused") != 2 || len(sent.events) != 2 {
		t.Errorf("no certificate: state: %s; events %v; log: %s", r.State(), sent.events, &log)
	}
	write(renewed.Raw)
	if looks(); refused() || r.State() != "" || len(is.taken) != 1 {
		t.Errorf("well again: state: %s", r.State())
	}
}

// below returns the CA of the key, certified by the one above it.
func below(t *testing.T, above fixture.CA, key crypto.Signer, lifetime time.Duration) *issuer.CA {
	t.Helper()
	cert := fixture.Certify(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "CA"},
		NotAfter: time.Now().Add(lifetime), KeyUsage: x509.KeyUsageCertSign,
		IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte{2},
	}, above.Certificate, key.Public(), above.Key)
	return must.Value(issuer.ParseCA(issuer.Chain{cert}.PEM()))(t)
}

// roots returns the certificates of the CAs as trust anchors.
func roots(t *testing.T, of ...fixture.CA) issuer.Anchors {
	t.Helper()
	var chain issuer.Chain
	for _, ca := range of {
		chain = append(chain, ca.Certificate)
	}
	return must.Value(issuer.ParseAnchors(chain.PEM()))(t)
}

// A renewed certificate of the next CA is refused if the roots that are published for it do not
// trust it, whatever those of the CA trust. The one before stays in use.
func TestCertificateOfTheNextCAMustBeTrusted(t *testing.T) {
	root, other := fixture.NewCA(t), fixture.NewCA(t)
	key := pkcs10test.NewKey(t)
	good := below(t, root, key, time.Hour)
	var log bytes.Buffer
	is, m, sent := &replacedCA{ca: good, key: key.Public()}, metrics.New(), &sentEvents{}
	r := NewNextCertificate(filepath.Join(t.TempDir(), "next.crt"), is,
		policy.NewCurrent(builtInPolicy(t)), roots(t, root), sent, m,
		hclog.New(&hclog.LoggerOptions{Output: &log}))
	write := func(ca *issuer.CA) {
		t.Helper()
		must.OK(t, os.WriteFile(r.path, issuer.Chain{ca.Certificate()}.PEM(), 0o600))
		r.look()
		r.look()
	}
	write(below(t, other, key, 48*time.Hour))
	if len(is.taken) > 0 || r.Refusal() == nil ||
		!strings.Contains(r.Refusal().Error(), "to NEXT_TRUST_BUNDLE_FILE first") ||
		!strings.Contains(log.String(), "is refused") || len(sent.events) != 1 ||
		testutil.ToFloat64(m.CARefused) != 0 {
		t.Errorf("a certificate of another root: %d taken; %v; events %v; log: %s",
			len(is.taken), r.Refusal(), sent.events, &log)
	}
	write(below(t, root, key, 48*time.Hour))
	if len(is.taken) != 1 || r.Refusal() != nil {
		t.Errorf("a certificate of its root: %d taken; %v", len(is.taken), r.Refusal())
	}
	for _, none := range []truster{(*Anchors)(nil), nextAnchors(nil)} {
		if err := none.replace(good, is.Replace); err != nil || is.ca != good {
			t.Errorf("without a bundle: %v", err)
		}
	}
}

// A certificate that was refused because the trust anchors lacked its root is used once they have
// it, without a change of its file.
func TestRefusedCertificateIsUsedOnceItIsTrusted(t *testing.T) {
	former, root, key := fixture.NewCA(t), fixture.NewCA(t), pkcs10test.NewKey(t)
	is := &replacedCA{ca: below(t, former, key, time.Hour), key: key.Public()}
	m, sent, logger := metrics.New(), &sentEvents{}, hclog.NewNullLogger()
	anchors := NewAnchors("", roots(t, former), is, sent, m, logger)
	r := NewCertificate(filepath.Join(t.TempDir(), "ca.crt"), is,
		policy.NewCurrent(builtInPolicy(t)), anchors, sent, m, logger)
	renewed := below(t, root, key, 2*time.Hour)
	must.OK(t, os.WriteFile(r.path, issuer.Chain{renewed.Certificate()}.PEM(), 0o600))
	for range 3 {
		r.look()
	}
	if len(is.taken) > 0 || r.Refusal() == nil || len(sent.events) != 1 {
		t.Errorf("before: %d taken; %v; events %v", len(is.taken), r.Refusal(), sent.events)
	}
	must.OK(t, anchors.apply(roots(t, former, root)))
	r.look()
	if len(is.taken) != 1 || r.Refusal() != nil || testutil.ToFloat64(m.CARefused) != 0 {
		t.Errorf("after: %d taken; %v", len(is.taken), r.Refusal())
	}
}
