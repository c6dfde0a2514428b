package issuer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/zmap/zlint/v3/lint"

	"hsm-signer/internal/must"
	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

func newTestIssuer(t *testing.T) *Issuer {
	t.Helper()
	return newCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)).issuer(t)
}

// Nothing is prepared without a grant that is good for it: no grant, an empty one, a spent one, one
// of a policy that was replaced.
func TestNothingIsPreparedWithoutAGrant(t *testing.T) {
	i := newTestIssuer(t)
	spent := grant(t, pkcs10test.NewKey(t), 0)
	issue(t, i, spent)
	p := parsePolicy(t, aPolicy)
	stale := grantTo(t, p, "ns:sa", "pu", "stale", 0, pkcs10test.Request{DNSNames: []string{"one"}})
	p.Withdraw()
	for name, c := range map[string]struct {
		grant *policy.Grant
		want  error
	}{
		"nil": {nil, policy.ErrNoGrant}, "empty": {&policy.Grant{}, policy.ErrNoGrant},
		"spent": {spent, policy.ErrGrantSpent}, "stale": {stale, policy.ErrGrantStale},
	} {
		if prepared, instead, err := i.Prepare(t.Context(), c.grant); prepared != nil ||
			instead != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: %v, %v, %v; want %v", name, prepared, instead, err, c.want)
		}
	}
}

// Nothing is issued but what was prepared, and that once, whoever has a copy of it.
func TestAPreparedCertificateIsIssuedOnce(t *testing.T) {
	for name, p := range map[string]*Prepared{"nil": nil, "empty": {}} {
		if _, err := p.Issue(t.Context()); !errors.Is(err, ErrNotPrepared) {
			t.Errorf("%s: %v", name, err)
		}
	}
	prepared := prepare(t, newTestIssuer(t), grant(t, pkcs10test.NewKey(t), 0))
	twin := *prepared
	if _, err := prepared.Issue(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*Prepared{"the same": prepared, "a copy": &twin} {
		if _, err := p.Issue(t.Context()); !errors.Is(err, ErrIssued) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What was prepared is not issued when it is no longer good, and then the journal has no intent of
// it and the key signs nothing.
func TestWhatWasPreparedIsNotIssuedAnyMore(t *testing.T) {
	p := parsePolicy(t, aPolicy)
	for name, c := range map[string]struct {
		change func(t *testing.T, i *Issuer)
		want   error
	}{
		"the policy was replaced": {func(*testing.T, *Issuer) { p.Withdraw() }, policy.ErrGrantStale},
		"the CA was replaced": {func(t *testing.T, i *Issuer) {
			same, err := ParseCA(Chain(i.CA().chain()).PEM())
			if err == nil {
				err = i.Replace(same)
			}
			must.OK(t, err)
		}, policy.ErrGrantStale},
		"the journal is closed": {func(_ *testing.T, i *Issuer) {
			i.journal = closedJournal{i.journal}
		}, journal.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			p = parsePolicy(t, aPolicy)
			i := newTestIssuer(t)
			prepared := prepare(t, i,
				grantTo(t, p, "ns:sa", "pu", "u", 0, pkcs10test.Request{DNSNames: []string{"one"}}))
			i.breakKey()
			c.change(t, i)
			if _, err := prepared.Issue(t.Context()); !errors.Is(err, c.want) ||
				errors.Is(err, errBroken) {
				t.Errorf("%v; want %v", err, c.want)
			}
			if open := i.journal.Unpublished(); len(open) > 0 {
				t.Errorf("the journal has an intent: %+v", open)
			}
		})
	}
}

// An intent that was given up after the certificate was prepared is not signed.
func TestAnIntentThatWasGivenUpIsNotSigned(t *testing.T) {
	a := newAsking(t)
	a.issuer.breakKey()
	if _, err := tryIssue(t, a.issuer, a.grant("one")); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	prepared := prepare(t, a.issuer, a.grant("one"))
	must.OK(t, a.issuer.Orphaned(t.Context(), "u", "the request is gone"))
	if _, err := prepared.Issue(t.Context()); err == nil || errors.Is(err, errBroken) {
		t.Errorf("%v", err)
	}
}

// The expensive checks of the key come before anything is written or signed.
func TestAWeakKeyIsNotPrepared(t *testing.T) {
	p := parsePolicy(t, `
version: 1
rules:
  - name: any
    from: {users: ["*"], pod: none}
    grant: {dnsNames: [a], keys: [rsa-2048], usages: [digital signature]}
`)
	i := newTestIssuer(t)
	verdict := p.Decide(policy.NewRequest(policy.Submission{
		UID: "u", PEM: pkcs10test.PrimeModulus(t), Usages: []policy.Usage{policy.DigitalSignature},
		Requester: policy.Requester{Username: "me"},
	}), policy.Facts{})
	g, granted := verdict.(*policy.Grant)
	if !granted {
		t.Fatal(verdict)
	}
	_, instead, err := i.Prepare(t.Context(), g)
	if refusal, is := instead.(*policy.Refusal); !is || refusal.Code() != policy.InvalidRequest ||
		err != nil {
		t.Errorf("%v, %v", instead, err)
	}
	if record, err := i.journal.Lookup("u"); record.State != journal.Unknown || err != nil {
		t.Errorf("the journal has %s, %v", record.State, err)
	}
}

// For one certificate: one look-up in the journal before the signature, one lint, one signature,
// and one verification of it.
func TestEachStepIsDoneOnce(t *testing.T) {
	made := newCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	ca, err := ParseCA(made.chain)
	must.OK(t, err)
	var lints, signatures, params, lookups int
	counting := countingKey{softKey{key: made.key}, &signatures}
	i, err := New(Authority{CA: ca, Key: counting}, newJournal(t, ca))
	must.OK(t, err)
	ca.linter.lints = countedLints{ca.linter.lints, &lints}
	i.journal = countedLookups{i.journal, &lookups}
	public := ca.cert.PublicKey.(*ecdsa.PublicKey)
	// The journal has the same certificate, so its verifications count too.
	counted := *public
	counted.Curve = countedCurve{public.Curve, &params}
	ca.cert.PublicKey = &counted
	must.OK(t, made.leaf(t).CheckSignatureFrom(ca.cert))
	perVerification := params
	params = 0

	prepared := prepare(t, i, grant(t, pkcs10test.NewKey(t), 0))
	if lookups != 1 || lints != 1 || signatures != 0 || params != 0 {
		t.Errorf("prepared with %d look-ups, %d lints, %d signatures, %d verifications",
			lookups, lints, signatures, params/perVerification)
	}
	if _, err := prepared.Issue(t.Context()); err != nil {
		t.Fatal(err)
	}
	if lookups != 1 || lints != 1 || signatures != 1 || params != perVerification {
		t.Errorf("issued with %d look-ups, %d lints, %d signatures, %d verifications",
			lookups, lints, signatures, params/perVerification)
	}
}

// countedLints counts how often a certificate is linted.
type countedLints struct {
	lint.Registry
	lints *int
}

func (c countedLints) CertificateLints() lint.CertificateLinterLookup {
	*c.lints++
	return c.Registry.CertificateLints()
}

// countedLookups counts what a journal is asked for.
type countedLookups struct {
	Journal
	lookups *int
}

func (c countedLookups) Lookup(uid string) (journal.Record, error) {
	*c.lookups++
	return c.Journal.Lookup(uid)
}

// countedCurve counts how often its parameters are read: each verification reads those of the key's
// curve equally often.
type countedCurve struct {
	elliptic.Curve
	params *int
}

func (c countedCurve) Params() *elliptic.CurveParams {
	*c.params++
	return c.Curve.Params()
}

// leaf returns a certificate that the CA has signed.
func (c aCA) leaf(t *testing.T) *x509.Certificate {
	t.Helper()
	key := pkcs10test.NewKey(t)
	return create(t, &x509.Certificate{SerialNumber: big.NewInt(3)}, c.issuing, &key.PublicKey,
		c.key)
}

// The lease of the one who signs may lapse while it is prepared: the context has ended then.
func TestNothingIsIssuedAfterTheContext(t *testing.T) {
	i := newTestIssuer(t)
	prepared := prepare(t, i, grant(t, pkcs10test.NewKey(t), 0))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := prepared.Issue(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if open := i.journal.Unpublished(); len(open) > 0 {
		t.Errorf("the journal has an intent: %+v", open)
	}
}
