package reload

import (
	"crypto/x509"
	"crypto/x509/pkix"
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

// The anchors do not change between the check of a certificate of the CA and its use.
func TestAnchorsStayWhileTheCAIsReplaced(t *testing.T) {
	root := fixture.NewCA(t)
	ca := below(t, root, pkcs10test.NewKey(t), time.Hour)
	a := NewAnchors("", roots(t, root), &replacedCA{ca: ca}, &sentEvents{}, metrics.New(),
		hclog.NewNullLogger())
	must.OK(t, a.replace(ca, func(*issuer.CA) error {
		if a.mu.TryLock() {
			t.Error("other anchors could be put in use")
		}
		return nil
	}))
	if !a.mu.TryLock() {
		t.Error("no other anchors can be put in use any more")
	}
}

// Other trust anchors are put in use if they trust the CA, and another certificate of the CA if the
// anchors trust it. What was in use before a refusal stays so.
func TestAnchorsAlwaysTrustTheCA(t *testing.T) {
	root, other, key := fixture.NewCA(t), fixture.NewCA(t), pkcs10test.NewKey(t)
	below := func(above fixture.CA, serial int64) issuer.Chain {
		return issuer.Chain{fixture.Certify(t, &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "CA"},
			NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
			IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte{2},
		}, above.Certificate, key.Public(), above.Key)}
	}
	dir := t.TempDir()
	write := func(name string, certs issuer.Chain) {
		t.Helper()
		must.OK(t, os.WriteFile(filepath.Join(dir, name), certs.PEM(), 0o600))
	}
	loaded := must.Value(issuer.ParseAnchors(issuer.Chain{root.Certificate}.PEM()))(t)
	is := &replacedCA{ca: must.Value(issuer.ParseCA(below(root, 1).PEM()))(t), key: key.Public()}
	m, sent, logger := metrics.New(), &sentEvents{}, hclog.NewNullLogger()
	a := NewAnchors(filepath.Join(dir, "roots"), loaded, is, sent, m, logger)
	r := NewCertificate(filepath.Join(dir, "ca"), is, policy.NewCurrent(builtInPolicy(t)), a, sent,
		m, logger)

	write("ca", below(other, 2))
	r.look()
	if r.look(); len(is.taken) > 0 || r.Refusal() == nil ||
		!strings.Contains(r.Refusal().Error(), "to TRUST_BUNDLE_FILE first") {
		t.Errorf("a CA of another root: %d taken; %v", len(is.taken), r.Refusal())
	}
	write("roots", issuer.Chain{other.Certificate})
	a.look()
	if a.look(); a.InUse().PEM() != loaded.PEM() || a.Refusal() == nil ||
		testutil.ToFloat64(m.TrustBundleRefused) != 1 || len(sent.events) != 2 {
		t.Errorf("only another root: %v; events %v", a.Refusal(), sent.events)
	}
	write("roots", issuer.Chain{root.Certificate, other.Certificate})
	a.look()
	if a.look(); len(a.InUse()) != 2 || a.Refusal() != nil ||
		testutil.ToFloat64(m.TrustBundleRefused) != 0 {
		t.Errorf("both roots: %d in use; %v", len(a.InUse()), a.Refusal())
	}
	write("ca", below(other, 3))
	r.look()
	if r.look(); len(is.taken) != 1 || r.Refusal() != nil {
		t.Errorf("a CA of a root that is published: %d taken; %v", len(is.taken), r.Refusal())
	}
}
