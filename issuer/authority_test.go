package issuer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// twoCAs is an issuer that can issue under two CAs, the second with an RSA key.
type twoCAs struct {
	asking
	first, next *CA
	firstKey    crypto.Signer
}

func newTwoCAs(t *testing.T) twoCAs {
	t.Helper()
	now := time.Now()
	made := newCA(t, now.Add(-time.Hour), now.Add(1000*time.Hour))
	first := must.Value(ParseCA(made.chain))(t)
	key := must.Value(rsa.GenerateKey(rand.Reader, 2048))(t)
	next := selfSigned(t, key, "next", []byte{7})
	j := must.Value(journal.Open(t.TempDir(),
		journal.Options{CA: first.Certificate(), Next: next.Certificate()}))(t)
	t.Cleanup(func() { must.OK(t, j.Close()) })
	i := must.Value(New(Authority{CA: first, Key: softKey{key: made.key}}, j))(t)
	must.OK(t, i.Next(Authority{next, softKey{key: key}, x509.SHA384WithRSA}))
	return twoCAs{asking{t, i, pkcs10test.NewKey(t)}, first, next, made.key}
}

func selfSigned(t *testing.T, key crypto.Signer, name string, keyID []byte) *CA {
	t.Helper()
	now := time.Now()
	cert := create(t, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour), SubjectKeyId: keyID,
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}, nil, key.Public(), key)
	return must.Value(ParseCA(encodePEM(cert.Raw)))(t)
}

// of is a grant for another request.
func (c twoCAs) of(uid string) *policy.Grant {
	c.t.Helper()
	return grantTo(c.t, parsePolicy(c.t, aPolicy), "ns:sa", "pu", uid, time.Hour,
		pkcs10test.Request{Key: c.key, DNSNames: []string{"one"}})
}

// Certificates are issued under the CA that was last said, with its key and its algorithm, and
// those of both are its own.
func TestSignWith(t *testing.T) {
	c := newTwoCAs(t)
	for n, want := range []struct {
		ca        *CA
		algorithm x509.SignatureAlgorithm
	}{{c.first, x509.ECDSAWithSHA256}, {c.next, x509.SHA384WithRSA},
		{c.first, x509.ECDSAWithSHA256}} {
		must.OK(t, c.issuer.SignWith(want.ca.KeySHA256()))
		text, err := tryIssue(t, c.issuer, c.of(string(rune('a'+n))))
		must.OK(t, err)
		leaf := must.Value(parseCertificates(text))(t)[0]
		if err := leaf.CheckSignatureFrom(want.ca.cert); err != nil ||
			leaf.SignatureAlgorithm != want.algorithm || c.issuer.CA() != want.ca {
			t.Errorf("%d: signed with %s by %s: %v", n, leaf.SignatureAlgorithm, leaf.Issuer, err)
		}
		if byCA, ours := c.issuer.Signed(text); !byCA || !ours {
			t.Errorf("%d: by the CA %t, ours %t", n, byCA, ours)
		}
	}
	must.OK(t, c.issuer.SignWith(c.next.KeySHA256()))
	if err := c.issuer.SignWith([32]byte{1}); !errors.Is(err, ErrUnknownKey) ||
		c.issuer.CA() != c.next {
		t.Errorf("%v", err)
	}
}

// What was prepared under one CA is not issued when another signs: there is no intent and no
// signature. To say the same CA again changes nothing.
func TestWhatIsPreparedIsStaleAfterASwitch(t *testing.T) {
	c := newTwoCAs(t)
	prepared := prepare(t, c.issuer, c.grant("one"))
	c.issuer.breakKey()
	must.OK(t, c.issuer.SignWith(c.next.KeySHA256()))
	if _, err := prepared.Issue(t.Context()); !errors.Is(err, policy.ErrGrantStale) ||
		c.state() != journal.Unknown {
		t.Errorf("%v; %s", err, c.state())
	}
	prepared = prepare(t, c.issuer, c.grant("one"))
	must.OK(t, c.issuer.SignWith(c.next.KeySHA256()))
	if _, err := prepared.Issue(t.Context()); err != nil {
		t.Error(err)
	}
}

// A slowKey says when it signs, and waits.
type slowKey struct {
	Key
	signs, may chan struct{}
}

func (k slowKey) Signer(ctx context.Context) crypto.Signer {
	return slowSigner{k.Key.Signer(ctx), k}
}

type slowSigner struct {
	crypto.Signer
	key slowKey
}

func (s slowSigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.key.signs <- struct{}{}
	<-s.key.may
	return s.Signer.Sign(r, digest, opts)
}

// A certificate that is being signed while another CA takes over is issued under the CA that it
// names.
func TestASwitchWhileTheKeySigns(t *testing.T) {
	c := newTwoCAs(t)
	a := c.issuer.authorities.inForce.Load()
	slow := slowKey{a.Key, make(chan struct{}), make(chan struct{})}
	a.Key = slow
	prepared := prepare(t, c.issuer, c.grant("one"))
	issued := make(chan error)
	var text []byte
	go func() {
		var err error
		text, err = prepared.Issue(t.Context())
		issued <- err
	}()
	<-slow.signs
	must.OK(t, c.issuer.SignWith(c.next.KeySHA256()))
	close(slow.may)
	must.OK(t, <-issued)
	leaf := must.Value(parseCertificates(text))(t)[0]
	if err := leaf.CheckSignatureFrom(c.first.cert); err != nil {
		t.Error(err)
	}
	if byCA, ours := c.issuer.Signed(text); !byCA || !ours {
		t.Errorf("by the CA %t, ours %t", byCA, ours)
	}
}

// intended has the journal hold an intent of the first CA that is not signed.
func (c twoCAs) intended() journal.Intent {
	c.t.Helper()
	repair := c.issuer.breakKey()
	if _, err := tryIssue(c.t, c.issuer, c.grant("one")); !errors.Is(err, errBroken) {
		c.t.Fatal(err)
	}
	repair()
	return must.Value(c.issuer.journal.Lookup("u"))(c.t).Intent
}

// An intent names a CA. When another one signs, it is given up, and its request gets a certificate
// of that CA, and no other when the former signs again.
func TestAnIntentOfTheFormerCAIsGivenUp(t *testing.T) {
	c := newTwoCAs(t)
	intent := c.intended()
	must.OK(t, c.issuer.SignWith(c.next.KeySHA256()))
	leaf := issue(t, c.issuer, c.grant("one"))[0]
	if err := leaf.CheckSignatureFrom(c.next.cert); err != nil ||
		journal.FormatSerial(leaf.SerialNumber) == intent.Serial {
		t.Errorf("%s: %v", leaf.Issuer, err)
	}
	must.OK(t, c.issuer.SignWith(c.first.KeySHA256()))
	if again := issue(t, c.issuer, c.grant("one"))[0]; !again.Equal(leaf) {
		t.Error("the request has two certificates")
	}
}

// When the former CA signs again before another one has signed for the request, exactly the bytes
// of its intent are signed. What was prepared under the other is not issued.
func TestAnIntentOfTheFormerCAThatSignsAgain(t *testing.T) {
	c := newTwoCAs(t)
	intent := c.intended()
	must.OK(t, c.issuer.SignWith(c.next.KeySHA256()))
	prepared := prepare(t, c.issuer, c.grant("one"))
	must.OK(t, c.issuer.SignWith(c.first.KeySHA256()))
	if _, err := prepared.Issue(t.Context()); !errors.Is(err, policy.ErrGrantStale) ||
		c.state() != journal.Intended {
		t.Errorf("%v; %s", err, c.state())
	}
	leaf := issue(t, c.issuer, c.grant("one"))[0]
	if !bytes.Equal(leaf.RawTBSCertificate, intent.TBS) {
		t.Error("other bytes were signed than those of the intent")
	}
}

// A certificate that a CA has signed stays its request's when another CA signs: it may have reached
// the API server. Its chain is that of its CA. Nothing is signed for it.
func TestACertificateOfTheFormerCA(t *testing.T) {
	c := newTwoCAs(t)
	first := must.Value(tryIssue(t, c.issuer, c.grant("one")))(t)
	must.OK(t, c.issuer.SignWith(c.next.KeySHA256()))
	c.issuer.breakKey()
	if again, err := tryIssue(t, c.issuer, c.grant("one")); err != nil ||
		!bytes.Equal(first, again) {
		t.Errorf("another certificate, or none: %v", err)
	}
	if _, err := tryIssue(t, c.issuer, c.grant("two")); !isFormer(err, "granted now") {
		t.Errorf("granted otherwise: %v", err)
	}
}

// A second CA is refused if clients could take it for the first, or its parts do not fit.
func TestNextRefuses(t *testing.T) {
	c := newTwoCAs(t)
	key := pkcs10test.NewKey(t)
	for words, a := range map[string]Authority{
		"has the same key": {CA: selfSigned(t, c.firstKey, "other", []byte{1}),
			Key: softKey{key: c.firstKey}},
		"could not tell them apart": {CA: selfSigned(t, key, "next", []byte{7}),
			Key: softKey{key: key}},
		"the key does not belong": {CA: selfSigned(t, key, "other", []byte{1}),
			Key: softKey{key: c.firstKey}},
		"cannot sign with": {selfSigned(t, key, "other", []byte{1}), softKey{key: key},
			x509.SHA256WithRSA},
	} {
		if err := c.issuer.Next(a); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v; want %q", err, words)
		}
		if a.CA.KeySHA256() == selfSigned(t, key, "x", []byte{1}).KeySHA256() &&
			c.issuer.CAOf(a.CA.KeySHA256()) != nil {
			t.Errorf("%s: it is registered", words)
		}
	}
}

// Another certificate of the CA that does not sign now takes its place too, and what is prepared
// under the other stays good.
func TestReplaceTheCAThatDoesNotSign(t *testing.T) {
	c := newTwoCAs(t)
	prepared := prepare(t, c.issuer, c.grant("one"))
	same := must.Value(ParseCA(Chain(c.next.chain()).PEM()))(t)
	must.OK(t, c.issuer.Replace(same))
	if c.issuer.CAOf(c.next.KeySHA256()) != same || c.issuer.CA() != c.first {
		t.Error("it was not replaced, or signs")
	}
	if _, err := prepared.Issue(t.Context()); err != nil {
		t.Error(err)
	}
	must.OK(t, c.issuer.SignWith(c.next.KeySHA256()))
	if c.issuer.CA() != same {
		t.Error("the former certificate is in use")
	}
}
