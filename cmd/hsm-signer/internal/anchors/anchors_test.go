package anchors

import (
	"crypto/x509/pkix"
	"errors"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/issuer"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// rootOf returns the root of a new CA.
func rootOf(t *testing.T, name string) issuer.Anchors {
	t.Helper()
	text, err := issuer.SelfSign(issuer.CAProfile{Subject: pkix.Name{CommonName: name},
		Lifetime: time.Hour}, pkcs10test.NewKey(t))
	must.OK(t, err)
	return must.Value(issuer.ParseAnchors(text))(t)
}

// A testFile has these anchors.
type testFile issuer.Anchors

func (f testFile) InUse() issuer.Anchors { return issuer.Anchors(f) }

// rolePhase publishes the roots of these CAs.
type rolePhase struct {
	ca, next bool
	fault    error
}

func (p rolePhase) Publishes() (ca, next bool) { return p.ca, p.next }

func (p rolePhase) Unclear() error { return p.fault }

// The phase says whose roots are published; while it is not clear, the bundle stays as it is.
func TestRootsOfEachPhase(t *testing.T) {
	former, next := rootOf(t, "former"), rootOf(t, "next")
	p := &Publisher{file: testFile(former), next: append(next, former...)}
	for _, c := range []struct {
		phase rolePhase
		want  string
	}{
		{rolePhase{ca: true}, former.PEM()},
		{rolePhase{ca: true, next: true}, former.PEM() + next.PEM()}, // each once
		{rolePhase{next: true}, next.PEM() + former.PEM()},
		{rolePhase{ca: true, fault: errors.New("malformed")}, ""},
	} {
		p.phase = c.phase
		roots, err := p.wanted()
		if got := roots.PEM(); got != c.want || (err == nil) != (c.phase.fault == nil) {
			t.Errorf("%+v: %v, %v", c.phase, len(roots), err)
		}
	}
	if got := p.Roots(); got.CA.PEM() != former.PEM() || got.Next.PEM() != p.next.PEM() {
		t.Errorf("the roots of both CAs: %v, %v", got.CA, got.Next)
	}
	if got := (*Publisher)(nil).Roots(); got.CA != nil || got.Next != nil {
		t.Errorf("without a bundle: %+v", got)
	}
	if err := (*Publisher)(nil).Holds(t.Context()); err != nil {
		t.Errorf("without a bundle: %v", err)
	}
}
