package issuer

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// A podAsking is a pod whose request is granted again and again, by an issuer with a clock.
type podAsking struct {
	t      *testing.T
	policy *policy.Policy
	stub   []byte
	issuer *Issuer
	ca     aCA
	next   Authority // not registered yet
	dir    string
	now    time.Time
}

func newPodAsking(t *testing.T, caLeft time.Duration) *podAsking {
	t.Helper()
	a := &podAsking{t: t, policy: podsPolicy(t), now: time.Now(), dir: t.TempDir()}
	key, err := pkcs10.ECDSAP256.Generate()
	must.OK(t, err)
	a.stub, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must.OK(t, err)
	a.ca = newCA(t, a.now.Add(-time.Hour), a.now.Add(caLeft))
	ca, err := ParseCA(a.ca.chain)
	must.OK(t, err)
	soft := softKey{key: pkcs10test.NewKey(t)}
	a.next = Authority{CA: selfSigned(t, soft.key, "next", []byte{7}), Key: soft}
	j, err := journal.Open(a.dir, journal.Options{Version: "test", CA: ca.Certificate(),
		Next: a.next.CA.Certificate()})
	must.OK(t, err)
	t.Cleanup(func() { _ = j.Close() })
	if a.issuer, err = New(Authority{CA: ca, Key: softKey{key: a.ca.key}}, j); err != nil {
		t.Fatal(err)
	}
	a.issuer.now = func() time.Time { return a.now }
	return a
}

func podsPolicy(t *testing.T) *policy.Policy {
	t.Helper()
	text, _ := policy.BuiltIn("pods")
	return must.Value(policy.Parse(text, policy.Options{ClusterDomain: "cluster.local",
		MaxLifetime: 24 * time.Hour, TrustDomain: "example.org"}))(t)
}

func (a *podAsking) grant(lifetime time.Duration) *policy.Grant {
	a.t.Helper()
	pod := policy.Pod{Namespace: "ns", Name: "p", UID: "pu", ServiceAccount: "sa", Node: "n",
		ServiceAccountUID: "su", NodeUID: "nu"}
	claim := &policy.PodCertificate{Stub: a.stub, Pod: pod}
	r := policy.NewRequest(policy.Submission{UID: "u", Name: "ns/req", SignerName: "example.com/s",
		Lifetime: lifetime, Requester: claim.Requester(), PodCertificate: claim})
	query, _ := r.PodQuery()
	verdict := a.policy.Decide(r, query.Found(pod))
	g, ok := verdict.(*policy.Grant)
	if !ok {
		a.t.Fatalf("not granted: %v", verdict)
	}
	return g
}

func (a *podAsking) leaf(lifetime time.Duration) *x509.Certificate {
	a.t.Helper()
	return issue(a.t, a.issuer, a.grant(lifetime))[0]
}

// verified returns what the journal holds.
func (a *podAsking) verified() journal.Counts {
	a.t.Helper()
	s, err := journal.Verify(a.dir,
		journal.VerifyOptions{CAs: []*x509.Certificate{a.issuer.CA().Certificate()}})
	if err != nil {
		a.t.Fatal(err)
	}
	return s.Counts
}

// The dates are those that the API server takes: the backdate counts in the lifetime, which is not
// less than an hour.
func TestDatesOfAPodsCertificate(t *testing.T) {
	for _, lifetime := range []time.Duration{time.Hour, 24 * time.Hour} {
		a := newPodAsking(t, 1000*time.Hour)
		a.now = a.now.Truncate(time.Second).Add(999 * time.Millisecond)
		leaf := a.leaf(lifetime)
		age := a.now.Sub(leaf.NotBefore)
		if got := leaf.NotAfter.Sub(leaf.NotBefore); got != lifetime || age > 2*time.Minute ||
			age < PodBackdate {
			t.Errorf("valid for %s, since %s", got, age)
		}
	}
}

// The SPIFFE ID is the only name, in a critical extension since there is no subject (RFC 5280,
// section 4.2.1.6).
func TestNamesOfAPodsCertificate(t *testing.T) {
	leaf := newPodAsking(t, 1000*time.Hour).leaf(time.Hour)
	if len(leaf.Subject.Names)+len(leaf.DNSNames)+len(leaf.IPAddresses)+
		len(leaf.EmailAddresses) > 0 || len(leaf.URIs) != 1 ||
		leaf.URIs[0].String() != "spiffe://example.org/ns/ns/sa/sa" {
		t.Errorf("%s %v %v", leaf.Subject, leaf.DNSNames, leaf.URIs)
	}
	for _, extension := range leaf.Extensions {
		if extension.Id.String() == "2.5.29.17" && !extension.Critical {
			t.Error("the subject alternative name is not critical")
		}
	}
}

// A CA with less than an hour left leaves requests open.
func TestCAThatEndsTooSoonForPods(t *testing.T) {
	a := newPodAsking(t, 58*time.Minute)
	prepared, instead, err := a.issuer.Prepare(t.Context(), a.grant(time.Hour))
	if err == nil || prepared != nil || instead != nil {
		t.Errorf("%v, %v, %v", prepared, instead, err)
	}
}

// A certificate that was not published is published later, unless the API server would not take it
// any more: then there is another, and the journal says that the first was given up.
func TestPodsCertificateThatWasNotPublished(t *testing.T) {
	a := newPodAsking(t, 1000*time.Hour)
	first := a.leaf(time.Hour)
	a.now = a.now.Add(podWindow - time.Second)
	if again := a.leaf(time.Hour); !again.Equal(first) {
		t.Error("within the window there is another certificate")
	}
	a.now = a.now.Add(3 * time.Second)
	second := a.leaf(time.Hour)
	if second.Equal(first) || !second.NotBefore.After(first.NotBefore) {
		t.Error("beyond the window there is the same certificate")
	}
	counts := a.verified()
	if counts.Intents != 2 || counts.Signed != 2 || counts.Orphaned != 1 {
		t.Errorf("%+v", counts)
	}
}

// An intent of the former CA is given up, and the pod gets a certificate of the one that signs now:
// kubelet would not ask again after a denial.
func TestPodsIntentOfTheFormerCA(t *testing.T) {
	a := newPodAsking(t, 1000*time.Hour)
	must.OK(t, a.issuer.Next(a.next))
	repair := a.issuer.breakKey()
	if _, err := tryIssue(t, a.issuer, a.grant(time.Hour)); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	repair()
	must.OK(t, a.issuer.SignWith(a.next.CA.KeySHA256()))
	if err := a.leaf(time.Hour).CheckSignatureFrom(a.next.CA.cert); err != nil {
		t.Error(err)
	}
	if counts := a.verified(); counts.Intents != 2 || counts.Signed != 1 || counts.Orphaned != 1 {
		t.Errorf("%+v", counts)
	}
}

// An intent that was not signed in time is given up too.
func TestPodsIntentThatWasNotSigned(t *testing.T) {
	a := newPodAsking(t, 1000*time.Hour)
	repair := a.issuer.breakKey()
	if _, err := tryIssue(t, a.issuer, a.grant(time.Hour)); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	repair()
	a.now = a.now.Add(time.Hour)
	if leaf := a.leaf(time.Hour); a.now.Sub(leaf.NotBefore) > 2*time.Minute {
		t.Errorf("valid since %s", leaf.NotBefore)
	}
	if counts := a.verified(); counts.Intents != 2 || counts.Signed != 1 || counts.Orphaned != 1 {
		t.Errorf("%+v", counts)
	}
}

// A certificate that the API server has refused is not tried again; a published one is never
// replaced.
func TestPodsCertificateThatWasRefusedOrPublished(t *testing.T) {
	a := newPodAsking(t, 1000*time.Hour)
	first := a.leaf(time.Hour)
	must.OK(t, a.issuer.Orphaned(t.Context(), "u", "the API server refuses it"))
	second := a.leaf(time.Hour)
	if second.Equal(first) {
		t.Error("the certificate that was refused is issued again")
	}
	must.OK(t, a.issuer.Published(t.Context(), "u"))
	if again := a.leaf(time.Hour); !again.Equal(second) {
		t.Error("a published certificate is replaced")
	}
	a.now = a.now.Add(time.Hour / 2)
	prepared, instead, err := a.issuer.Prepare(t.Context(), a.grant(time.Hour))
	if err == nil || prepared != nil || instead != nil {
		t.Errorf("%v, %v, %v", prepared, instead, err)
	}
	if counts := a.verified(); counts.Signed != 2 || counts.Published != 1 {
		t.Errorf("%+v", counts)
	}
}
