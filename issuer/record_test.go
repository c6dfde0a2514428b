package issuer

import (
	"bytes"
	"crypto"
	"errors"
	"strings"
	"testing"
	"time"

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
	return asking{t, newCA(t, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)).issuer(t), pkcs10test.NewKey(t)}
}

func (a asking) grant(names ...string) *policy.Grant {
	a.t.Helper()
	return grantTo(a.t, parsePolicy(a.t, aPolicy), "ns:sa", "pu", "u", time.Hour, pkcs10test.Request{Key: a.key, DNSNames: names})
}

func (a asking) state() journal.State {
	a.t.Helper()
	record, err := a.issuer.journal.Lookup("u")
	if err != nil {
		a.t.Fatal(err)
	}
	return record.State
}

// Asked again for the same request, as after a write that was lost, the issuer answers with the same
// certificate, published or not.
func TestOneRequestHasOneCertificate(t *testing.T) {
	a := newAsking(t)
	first, err := a.issuer.Issue(t.Context(), a.grant("one"))
	if err != nil || a.state() != journal.HasCertificate {
		t.Fatalf("%v; %s", err, a.state())
	}
	again := func() {
		t.Helper()
		g := a.grant("one")
		if err := a.issuer.Reserve(t.Context(), g); err != nil {
			t.Error(err)
		}
		if second, err := a.issuer.Issue(t.Context(), g); err != nil || !bytes.Equal(first, second) {
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
	well := a.issuer.key
	a.issuer.key = brokenKey{well}
	if _, err := a.issuer.Issue(t.Context(), a.grant("one")); !errors.Is(err, errBroken) || a.state() != journal.Intended {
		t.Fatalf("%v; %s", err, a.state())
	}
	before, err := a.issuer.journal.Lookup("u")
	if err != nil {
		t.Fatal(err)
	}
	a.issuer.key = well
	leaf := issue(t, a.issuer, a.grant("one"))[0]
	if !bytes.Equal(leaf.RawTBSCertificate, before.Intent.TBS) {
		t.Error("other bytes were signed than were intended")
	}
}

// A request that is granted otherwise now does not get the certificate of before, nor a second one.
func TestWhatIsGrantedOtherwiseIsNotSigned(t *testing.T) {
	a := newAsking(t)
	issue(t, a.issuer, a.grant("one"))
	for _, try := range []func(*policy.Grant) error{
		func(g *policy.Grant) error { return a.issuer.Reserve(t.Context(), g) },
		func(g *policy.Grant) error { _, err := a.issuer.Issue(t.Context(), g); return err },
	} {
		if err := try(a.grant("two")); err == nil || !strings.Contains(err.Error(), "another certificate for request u than is granted now") {
			t.Errorf("%v", err)
		}
	}
}

// What was begun a while ago is unfinished until it is known what became of it.
func TestUnfinished(t *testing.T) {
	a := newAsking(t)
	chain, err := a.issuer.Issue(t.Context(), a.grant("one"))
	if err != nil {
		t.Fatal(err)
	}
	if got := a.issuer.Unfinished(); len(got) > 0 {
		t.Errorf("just begun, and unfinished: %v", got)
	}
	later := time.Now().Add(2 * unfinishedAfter)
	a.issuer.now = func() time.Time { return later }
	if !a.issuer.Made("u", chain) || a.issuer.Made("u", a.issuer.chain([]byte("x"))) || a.issuer.Made("v", chain) {
		t.Error("its own certificate is not told from others")
	}
	if got := a.issuer.Unfinished(); len(got) != 1 || got[0] != "u" {
		t.Errorf("unfinished are %v", got)
	}
	if err := a.issuer.Orphaned(t.Context(), "u", "the request is gone"); err != nil || a.state() != journal.IsOrphaned {
		t.Errorf("%v; %s", err, a.state())
	}
	if got := a.issuer.Unfinished(); len(got) > 0 {
		t.Errorf("orphaned, and unfinished: %v", got)
	}
	if _, err := a.issuer.Issue(t.Context(), a.grant("one")); err == nil || !strings.Contains(err.Error(), "was given up before") {
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
	a.issuer.key = brokenKey{a.issuer.key}
	if _, err := a.issuer.Issue(t.Context(), a.grant("one")); !errors.Is(err, journal.ErrClosed) || errors.Is(err, errBroken) {
		t.Errorf("issue: %v", err)
	}
}
