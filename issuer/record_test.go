package issuer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// asking is a pod that asks with one key, again and again in the same request.
type asking struct {
	t      *testing.T
	issuer *Issuer
	key    crypto.Signer
}

func newAsking(t *testing.T) asking {
	t.Helper()
	return asking{t, newCA(t, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)).issuer(t),
		pkcs10test.NewKey(t)}
}

func (a asking) grant(names ...string) *policy.Grant {
	a.t.Helper()
	return grantTo(a.t, parsePolicy(a.t, aPolicy), "ns:sa", "pu", "u", time.Hour,
		pkcs10test.Request{Key: a.key, DNSNames: names})
}

func (a asking) state() journal.State {
	a.t.Helper()
	record, err := a.issuer.journal.Lookup("u")
	if err != nil {
		a.t.Fatal(err)
	}
	return record.State
}

// Asked again for the same request, as after a write that was lost, the issuer returns the same
// certificate, published or not.
func TestOneRequestHasOneCertificate(t *testing.T) {
	a := newAsking(t)
	first, err := tryIssue(t, a.issuer, a.grant("one"))
	if err != nil || a.state() != journal.HasCertificate {
		t.Fatalf("%v; %s", err, a.state())
	}
	again := func() {
		t.Helper()
		if second, err := tryIssue(t, a.issuer, a.grant("one")); err != nil ||
			!bytes.Equal(first, second) {
			t.Errorf("another certificate: %v", err)
		}
	}
	again()
	if err := a.issuer.Published(t.Context(), "u"); err != nil || a.state() != journal.IsPublished {
		t.Errorf("%v; %s", err, a.state())
	}
	again()
}

// What was intended and perhaps signed before a crash is signed again, the same bytes.
func TestWhatWasIntendedIsSigned(t *testing.T) {
	a := newAsking(t)
	repair := a.issuer.breakKey()
	if _, err := tryIssue(t, a.issuer, a.grant("one")); !errors.Is(err, errBroken) ||
		a.state() != journal.Intended {
		t.Fatalf("%v; %s", err, a.state())
	}
	before, err := a.issuer.journal.Lookup("u")
	must.OK(t, err)
	repair()
	leaf := issue(t, a.issuer, a.grant("one"))[0]
	if !bytes.Equal(leaf.RawTBSCertificate, before.Intent.TBS) {
		t.Error("other bytes were signed than were intended")
	}
}

// A request that is granted otherwise now does not get the certificate of before, nor a second one.
func TestWhatIsGrantedOtherwiseIsNotSigned(t *testing.T) {
	a := newAsking(t)
	issue(t, a.issuer, a.grant("one"))
	if _, err := tryIssue(t, a.issuer, a.grant("two")); !isFormer(err,
		"is not the one that is granted now") {
		t.Errorf("%v", err)
	}
}

// isFormer reports whether the request was refused because of an earlier certificate, with these
// words.
func isFormer(err error, words string) bool {
	var a answered
	errors.As(err, &a)
	refusal, is := a.verdict.(*policy.Refusal)
	return is && refusal.Code() == policy.FormerCertificate &&
		strings.Contains(refusal.Message(), words)
}

// Whether the clock was set back or forward, a request gets the certificate of before; but not one
// that has expired, nor one that is valid for longer than is granted now.
func TestAnotherTimeIsNoOtherGrant(t *testing.T) {
	a := newAsking(t)
	first, err := tryIssue(t, a.issuer, a.grant("one"))
	must.OK(t, err)
	for step, why := range map[time.Duration]string{-50 * time.Minute: "", 50 * time.Minute: "",
		2 * time.Hour: "has expired"} {
		a.issuer.now = func() time.Time { return time.Now().Add(step) }
		again, err := tryIssue(t, a.issuer, a.grant("one"))
		if why == "" && (err != nil || !bytes.Equal(first, again)) ||
			why != "" && !isFormer(err, why) {
			t.Errorf("%s later: %v", step, err)
		}
	}
	a.issuer.now = time.Now
	shorter := grantTo(t, parsePolicy(t, aPolicy), "ns:sa", "pu", "u", 30*time.Minute,
		pkcs10test.Request{Key: a.key, DNSNames: []string{"one"}})
	if _, err := tryIssue(t, a.issuer, shorter); !isFormer(err, "30m0s is granted now") {
		t.Errorf("a shorter grant: %v", err)
	}
}

// The journal says what was asked under which name, and which process signed a certificate.
func TestWhatTheAuditorNeeds(t *testing.T) {
	a := newAsking(t)
	chain, err := tryIssue(t, a.issuer, a.grant("one"))
	must.OK(t, err)
	if record, err := a.issuer.journal.Lookup("u"); err != nil || record.Intent.Name != "name-u" {
		t.Errorf("the intent has the name %q, %v", record.Intent.Name, err)
	}
	other := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)).issuer(t)
	foreign, err := tryIssue(t, other, a.grant("one"))
	must.OK(t, err)
	for name, c := range map[string]struct {
		chain      []byte
		byCA, ours bool
	}{"own": {chain, true, true}, "foreign": {foreign, false, false},
		"nonsense": {[]byte("x"), false, false}} {
		if byCA, ours := a.issuer.Signed(c.chain); byCA != c.byCA || ours != c.ours {
			t.Errorf("%s: by the CA %t, ours %t", name, byCA, ours)
		}
	}
	a.issuer.journal = other.journal // with another id
	if byCA, ours := a.issuer.Signed(chain); !byCA || ours {
		t.Errorf("of another journal: by the CA %t, ours %t", byCA, ours)
	}
}

// The CA's certificate may be replaced by another of the same key and name: what is issued from
// then on is valid under it. One of another key or name is not taken.
func TestCertificateOfTheCAIsReplaced(t *testing.T) {
	now := time.Now()
	before := newCA(t, now.Add(-time.Hour), now.Add(time.Minute))
	i := before.issuer(t)
	made := func(key *ecdsa.PrivateKey, name string) *CA {
		t.Helper()
		cert := create(t, &x509.Certificate{
			SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: name}, NotBefore: now,
			NotAfter: now.Add(24 * time.Hour),
			KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
			SubjectKeyId: before.issuing.SubjectKeyId,
		}, nil, &key.PublicKey, key)
		return must.Value(ParseCA(encodePEM(cert.Raw)))(t)
	}
	for words, ca := range map[string]*CA{
		"the key does not belong": made(pkcs10test.NewKey(t), "issuing"),
		"it is of another CA":     made(before.key, "another"),
	} {
		if err := i.Replace(ca); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v; want %q", err, words)
		}
	}
	key := pkcs10test.NewKey(t)
	granted := func(uid string) *policy.Grant {
		t.Helper()
		return grantTo(t, parsePolicy(t, aPolicy), "ns:sa", "pu", uid, time.Hour,
			pkcs10test.Request{Key: key, DNSNames: []string{"one"}})
	}
	if leaf := issue(t, i, granted("first"))[0]; leaf.NotAfter.After(before.issuing.NotAfter) {
		t.Errorf("valid until %s, and the CA until %s", leaf.NotAfter, before.issuing.NotAfter)
	}
	repair := i.breakKey()
	if _, err := tryIssue(t, i, granted("begun")); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	repair()
	renewed := made(before.key, "issuing")
	must.OK(t, i.Replace(renewed))
	issue(t, i, granted("begun")) // which is older than the CA's certificate now
	leaf := issue(t, i, granted("second"))[0]
	if err := leaf.CheckSignatureFrom(renewed.cert); err != nil ||
		!leaf.NotAfter.After(before.issuing.NotAfter) || i.CA() != renewed {
		t.Errorf("valid until %s: %v", leaf.NotAfter, err)
	}
}

// A process that stood still after its time was up begins nothing and signs no more, although its
// context does not know yet.
func TestNothingIsSignedAfterItsTime(t *testing.T) {
	a := newAsking(t)
	prepared := prepare(t, a.issuer, a.grant("one"))
	if _, err := prepared.once.sign(lateContext{t.Context()}); !errors.Is(err,
		context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if err := prepared.once.intend(lateContext{t.Context()}); !errors.Is(err,
		context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if _, err := prepared.Issue(lateContext{t.Context()}); !errors.Is(err,
		context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if left := a.issuer.journal.Unpublished(); len(left) != 0 {
		t.Errorf("begun: %+v", left)
	}
}

// A lateContext is over by the clock, and nobody has ended it yet.
type lateContext struct{ context.Context }

func (lateContext) Deadline() (time.Time, bool) { return time.Now().Add(-time.Millisecond), true }

// What was started earlier is unfinished until its outcome is known.
func TestUnfinished(t *testing.T) {
	a := newAsking(t)
	chain, err := tryIssue(t, a.issuer, a.grant("one"))
	must.OK(t, err)
	if got := a.issuer.Unfinished(); len(got) > 0 {
		t.Errorf("just begun, and unfinished: %v", got)
	}
	later := time.Now().Add(2 * unfinishedAfter)
	a.issuer.now = func() time.Time { return later }
	for _, c := range []struct {
		uid   string
		chain []byte
		made  bool
	}{
		{"u", chain, true}, // from memory, and then from the journal
		{"u", chain, true}, {"u", a.issuer.CA().chainOf([]byte("x")), false}, {"v", chain, false},
	} {
		if made, err := a.issuer.Made(c.uid, c.chain); made != c.made || err != nil {
			t.Errorf("its own certificate is not told from others: %s: %t, %v", c.uid, made, err)
		}
	}
	if got := a.issuer.Unfinished(); len(got) != 1 || got[0].UID != "u" ||
		got[0].SignerName == "" || got[0].Name == "" {
		t.Errorf("unfinished are %v", got)
	}
	a.issuer.signing.Store("u", true)
	if err := a.issuer.Orphaned(t.Context(), "u", "the request is gone"); err != nil ||
		a.state() != journal.HasCertificate {
		t.Errorf("while it is at work: %v; %s", err, a.state())
	}
	a.issuer.signing.Delete("u")
	if err := a.issuer.Orphaned(t.Context(), "u", "the request is gone"); err != nil ||
		a.state() != journal.IsOrphaned {
		t.Errorf("%v; %s", err, a.state())
	}
	if got := a.issuer.Unfinished(); len(got) > 0 {
		t.Errorf("orphaned, and unfinished: %v", got)
	}
	if again, err := tryIssue(t, a.issuer, a.grant("one")); err != nil ||
		!bytes.Equal(again, chain) {
		t.Errorf("it came back, and did not get the certificate of before: %v", err)
	}
}

// Only a certificate that the journal has as published was delivered, and only a request without a
// certificate to come was never issued.
func TestDelivered(t *testing.T) {
	a := newAsking(t)
	require := func(uid string, chain []byte, wantDelivered, wantNever bool) {
		t.Helper()
		delivered, err := a.issuer.Delivered(uid, chain)
		never, err2 := a.issuer.NeverIssued(uid)
		if delivered != wantDelivered || never != wantNever || err != nil || err2 != nil {
			t.Errorf("%s, %s: delivered %t, never issued %t, %v, %v", uid, a.state(), delivered,
				never, err, err2)
		}
	}
	require("u", nil, false, true)
	chain, err := tryIssue(t, a.issuer, a.grant("one"))
	must.OK(t, err)
	require("u", chain, false, false)
	must.OK(t, a.issuer.Unconfirmed(t.Context(), "u", "the request is gone"))
	require("u", chain, false, false)
	must.OK(t, a.issuer.Published(t.Context(), "u"))
	require("u", chain, true, false)
	require("u", a.issuer.CA().chainOf([]byte("x")), false, false)
	require("u", []byte("no PEM"), false, false)
	require("v", chain, false, true)
}

// What was started by an earlier process is unfinished at once. What nobody can find out any more
// is recorded as that, and the request gets the same certificate when it comes back.
func TestUnconfirmed(t *testing.T) {
	made := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
	a := asking{t, made.issuer(t), pkcs10test.NewKey(t)}
	dir, ca := t.TempDir(), a.issuer.CA()
	start := func() *journal.Writer {
		t.Helper()
		j, err := journal.Open(dir, journal.Options{Version: "test", CA: ca.Certificate()})
		must.OK(t, err)
		a.issuer.journal = j
		return j
	}
	j := start()
	chain, err := tryIssue(t, a.issuer, a.grant("one"))
	must.OK(t, err)
	if got := a.issuer.Unfinished(); len(got) != 0 {
		t.Errorf("unfinished, though it is being published: %v", got)
	}
	a.issuer.signing.Store("u", true)
	if err := a.issuer.Unconfirmed(t.Context(), "u", "the request is gone"); err != nil ||
		a.state() != journal.HasCertificate {
		t.Errorf("while it is at work: %v; %s", err, a.state())
	}
	a.issuer.signing.Delete("u")
	must.OK(t, j.Close())
	j = start()
	if got := a.issuer.Unfinished(); len(got) != 1 || got[0].UID != "u" {
		t.Errorf("unfinished after a restart are %v", got)
	}
	for range 2 { // the second time there is nothing more to note
		if err := a.issuer.Unconfirmed(t.Context(), "u", "the request is gone"); err != nil ||
			a.state() != journal.IsUnconfirmed {
			t.Errorf("%v; %s", err, a.state())
		}
	}
	if got := a.issuer.Unfinished(); len(got) > 0 {
		t.Errorf("resolved, and unfinished: %v", got)
	}
	if again, err := tryIssue(t, a.issuer, a.grant("one")); err != nil ||
		!bytes.Equal(again, chain) {
		t.Errorf("it came back, and did not get the certificate of before: %v", err)
	}
	if err := a.issuer.Published(t.Context(), "u"); err != nil || a.state() != journal.IsPublished {
		t.Errorf("%v; %s", err, a.state())
	}
	must.OK(t, j.Close())
	_, err = journal.Verify(dir, journal.VerifyOptions{CAs: []*x509.Certificate{ca.Certificate()}})
	if err != nil {
		t.Error(err)
	}
}

// An etcd that was restored brings back requests that the journal has long dropped from memory:
// each gets the same certificate again, also after a restart and without the indexes.
func TestEtcdRestoredFromBeforeTheMemory(t *testing.T) {
	made := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
	a := asking{t, made.issuer(t), pkcs10test.NewKey(t)}
	dir, ca := t.TempDir(), a.issuer.CA()
	start := func() *journal.Writer {
		t.Helper()
		// only what is unfinished stays in memory
		options := journal.Options{Version: "test", CA: ca.Certificate(), FileSize: 1}
		j, err := journal.Open(dir, options)
		must.OK(t, err)
		a.issuer.journal = j
		return j
	}
	serve := func(uid string) []byte {
		t.Helper()
		grant := grantTo(t, parsePolicy(t, aPolicy), "ns:sa", "pu", uid, time.Hour,
			pkcs10test.Request{Key: a.key, DNSNames: []string{"one"}})
		chain, err := tryIssue(t, a.issuer, grant)
		if err == nil {
			err = a.issuer.Published(t.Context(), uid)
		}
		must.OK(t, err)
		return chain
	}
	j := start()
	var before [][]byte
	uids := []string{"first", "second", "third"}
	for _, uid := range uids {
		before = append(before, serve(uid))
	}
	for range 2 {
		for n, uid := range uids {
			if again := serve(uid); !bytes.Equal(again, before[n]) {
				t.Errorf("%s has another certificate", uid)
			}
		}
		must.OK(t, j.Close())
		indexes, err := filepath.Glob(filepath.Join(dir, "index-*"))
		if err != nil || len(indexes) == 0 {
			t.Fatalf("%d indexes; %v", len(indexes), err)
		}
		for _, path := range indexes {
			must.OK(t, os.Remove(path))
		}
		j = start()
	}
	must.OK(t, j.Close())
	s, err := journal.Verify(dir, journal.VerifyOptions{CAs: []*x509.Certificate{ca.Certificate()}})
	if err != nil || s.Counts.Signed != len(uids) {
		t.Errorf("%d certificates; %v", s.Counts.Signed, err)
	}
}

// A request that was given up before anything was signed for it gets nothing when it comes back.
func TestGivenUpBeforeItWasSigned(t *testing.T) {
	a := newAsking(t)
	repair := a.issuer.breakKey()
	if _, err := tryIssue(t, a.issuer, a.grant("one")); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	repair()
	for range 2 { // the second time there is nothing more to note
		if err := a.issuer.Orphaned(t.Context(), "u", "the request is gone"); err != nil ||
			a.state() != journal.IsOrphaned {
			t.Errorf("%v; %s", err, a.state())
		}
	}
	if _, err := tryIssue(t, a.issuer, a.grant("one")); !isFormer(err, "given up before") {
		t.Errorf("orphaned, and issued: %v", err)
	}
}

// Nothing is signed that the journal does not take.
func TestNothingIsSignedWithoutTheJournal(t *testing.T) {
	a := newAsking(t)
	a.issuer.journal = closedJournal{a.issuer.journal}
	if err := a.issuer.Ready(t.Context()); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("ready: %v", err)
	}
	a.issuer.breakKey()
	if _, err := tryIssue(t, a.issuer, a.grant("one")); !errors.Is(err, journal.ErrClosed) ||
		errors.Is(err, errBroken) {
		t.Errorf("issue: %v", err)
	}
}
