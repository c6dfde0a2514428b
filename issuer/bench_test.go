package issuer

import (
	"fmt"
	"testing"
	"time"

	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// BenchmarkPrepare makes everything that precedes a signature.
func BenchmarkPrepare(b *testing.B) {
	i := newCA(b, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)).issuer(b)
	grants := grants(b, b.N)
	b.ReportAllocs()
	b.ResetTimer()
	for n := range b.N {
		prepare(b, i, grants[n])
	}
}

// BenchmarkIssue writes the intent, signs with a key in memory, verifies, and records. The time of
// one includes two syncs of the disk.
func BenchmarkIssue(b *testing.B) {
	i := newCA(b, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)).issuer(b)
	var prepared []*Prepared
	for _, g := range grants(b, b.N) {
		prepared = append(prepared, prepare(b, i, g))
	}
	b.ReportAllocs()
	b.ResetTimer()
	for n := range b.N {
		if _, err := prepared[n].Issue(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLint makes a certificate with the throwaway key and lints it.
func BenchmarkLint(b *testing.B) {
	i := newCA(b, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)).issuer(b)
	g := grants(b, 1)[0]
	b.ReportAllocs()
	for b.Loop() {
		if refusal := Lint(i.CA(), g); refusal != nil {
			b.Fatal(refusal)
		}
	}
}

// grants returns this many grants of one policy, each for another request.
func grants(t testing.TB, count int) (all []*policy.Grant) {
	const budget = "budget: {total: 1000000, perServiceAccount: 100%, perPod: 1000000}\n"
	key, p := pkcs10test.NewKey(t), parsePolicy(t, aPolicy+budget)
	for n := range count {
		uid := fmt.Sprint("u", n)
		all = append(all, grantTo(t, p, "ns:sa", "pu", uid, time.Hour, oneAndTwo(key)))
	}
	return all
}

// More allocations than these would show that something is made or linted twice.
func TestLintAllocates(t *testing.T) {
	const most = 1800
	i := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)).issuer(t)
	g := grants(t, 1)[0]
	if got := testing.AllocsPerRun(100, func() { Lint(i.CA(), g) }); got > most {
		t.Errorf("%.0f allocations to lint; at most %d are expected", got, most)
	}
}
