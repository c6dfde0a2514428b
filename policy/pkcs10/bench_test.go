package pkcs10_test

import (
	"crypto/x509/pkix"
	"net/netip"
	"testing"

	"hsm-signer/policy/pkcs10"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// calicoRequest is what a pod of Calico's asks for.
func calicoRequest(t testing.TB) []byte {
	t.Helper()
	return pkcs10test.Request{
		Subject:  pkix.Name{CommonName: "typha-client", Organization: []string{"Tigera"}},
		DNSNames: []string{"typha-client"}, IPs: []netip.Addr{netip.MustParseAddr("10.65.0.7")},
	}.PEM(t)
}

func BenchmarkParse(b *testing.B) {
	text := calicoRequest(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, faults := pkcs10.Parse(text); len(faults) > 0 {
			b.Fatal(faults)
		}
	}
}

// More allocations than these would show that something is read twice.
func TestParseAllocates(t *testing.T) {
	const most = 260
	text := calicoRequest(t)
	got := testing.AllocsPerRun(100, func() { pkcs10.Parse(text) })
	if got > most {
		t.Errorf("%.0f allocations for a request; at most %d are expected", got, most)
	}
}
