package policy_test

import (
	"testing"

	"hsm-signer/policy"
)

// BenchmarkDecide parses a request of Calico's and decides on it, as a sync does.
func BenchmarkDecide(b *testing.B) {
	p := builtIn(b, "calico")
	asking := newAsker("calico-system", "calico-node", "typha-client")
	pem := pemOf(b, asking)
	b.ReportAllocs()
	for b.Loop() {
		r, facts := asking.requestOf(pem)
		if v, granted := p.Decide(r, facts).(*policy.Grant); !granted {
			b.Fatal(v)
		}
	}
}

// pemOf returns the PKCS#10 request of the pod.
func pemOf(t testing.TB, a asker) []byte {
	r, _ := a.request(t)
	return r.PEM
}

// More allocations than these would show that the request is parsed twice.
func TestDecideAllocates(t *testing.T) {
	const most = 290
	p := builtIn(t, "calico")
	asking := newAsker("calico-system", "calico-node", "typha-client")
	pem := pemOf(t, asking)
	got := testing.AllocsPerRun(100, func() {
		r, facts := asking.requestOf(pem)
		p.Decide(r, facts)
	})
	if got > most {
		t.Errorf("%.0f allocations for a decision; at most %d are expected", got, most)
	}
}
