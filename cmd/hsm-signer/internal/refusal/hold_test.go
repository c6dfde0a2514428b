package refusal

import (
	"crypto/rand"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10"
)

// noRuleForTeam is a policy that refuses the pods of the test, whatever else it says.
func noRuleForTeam(t *testing.T, account string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(`version: 1
rules:
  - name: other
    from: {podCertificates: true, serviceAccounts: [shop/`+account+`]}
    grant:
      uris: ["spiffe://example.org/{serviceAccount}"]
      keys: [ecdsa-p256]
      usages: [digital signature]
`), policy.Options{ClusterDomain: "cluster.local", MaxLifetime: time.Hour})
	must.OK(t, err)
	return p
}

// podAsks returns the request of a pod, and what a look-up of it finds.
func podAsks(t *testing.T, started bool, stub x509.CertificateRequest) (*policy.Request,
	policy.Facts) {
	t.Helper()
	key, err := pkcs10.ECDSAP256.Generate()
	must.OK(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &stub, key)
	must.OK(t, err)
	pod := policy.Pod{Namespace: "shop", Name: "web", UID: "1", ServiceAccount: "web",
		ServiceAccountUID: "2", Node: "n", NodeUID: "3", Started: started}
	claim := &policy.PodCertificate{Stub: der, Pod: pod}
	r := policy.NewRequest(policy.Submission{UID: "u", Requester: claim.Requester(),
		Lifetime: time.Hour, PodCertificate: claim})
	query, _ := r.PodQuery()
	return r, query.Found(pod)
}

// A refusal that another policy could change stays open for a pod that has had a certificate, until
// the policy has been in force long enough. All others are final at once.
func TestRefusalOfARunningPodIsHeld(t *testing.T) {
	now := time.Now()
	current := policy.NewCurrent(noRuleForTeam(t, "a"))
	h := New(current, current.Policy().Hash(), time.Hour)
	h.now, h.since = func() time.Time { return now }, now
	decide := func(started bool, stub x509.CertificateRequest) policy.Verdict {
		r, facts := podAsks(t, started, stub)
		return h.Decide(r, facts)
	}
	requireHeld := func(when string, want bool) {
		t.Helper()
		v := decide(true, x509.CertificateRequest{})
		waiting, held := v.(*policy.Waiting)
		if held != want || held && (!strings.Contains(waiting.Missing, "which no rule names") ||
			waiting.Held == nil || !waiting.Held.Until.After(now)) {
			t.Errorf("%s: %v", when, v)
		}
	}
	requireHeld("at first", true)
	if _, refused := decide(false, x509.CertificateRequest{}).(*policy.Refusal); !refused {
		t.Error("a pod that never started is held")
	}
	forged := x509.CertificateRequest{DNSNames: []string{"kubernetes"}}
	if _, refused := decide(true, forged).(*policy.Refusal); !refused {
		t.Error("a request that no policy could grant is held")
	}
	now = now.Add(time.Hour - time.Second)
	requireHeld("just before the end", true)
	now = now.Add(time.Second)
	requireHeld("at the end", false)
	current.Replace(noRuleForTeam(t, "b"))
	requireHeld("after another policy", true)
	now = now.Add(time.Hour)
	requireHeld("at the end of that", false)
	current.Replace(noRuleForTeam(t, "web"))
	if _, granted := decide(true, x509.CertificateRequest{}).(*policy.Grant); !granted {
		t.Error("what the policy grants is held")
	}
}
