package daemon

import (
	"context"
	"crypto"
	"encoding/pem"
	"errors"
	"testing"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
	"hsm-signer/issuer"
)

// A memoryKey is a key in memory.
type memoryKey struct{ signer crypto.Signer }

func (k memoryKey) Public() crypto.PublicKey { return k.signer.Public() }

func (memoryKey) Ready(context.Context) error { return nil }

func (k memoryKey) Signer(context.Context) crypto.Signer { return k.signer }

// noSteps are those of a rotation that refuses no certificate.
type noSteps struct{}

func (noSteps) Replace(fresh *issuer.CA, replace func(*issuer.CA) error) error {
	return replace(fresh)
}

// wary are steps that refuse every certificate.
type wary struct{}

func (wary) Replace(*issuer.CA, func(*issuer.CA) error) error { return errors.New("not yet") }

// During a rotation a file whose certificate becomes that of the other CA is refused, and so is one
// that clients may not trust yet.
func TestFileOfACADoesNotTakeTheOther(t *testing.T) {
	of := func(ca fixture.CA) issuer.Authority {
		parsed := must.Value(issuer.ParseCA(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
			Bytes: ca.Certificate.Raw})))(t)
		return issuer.Authority{CA: parsed, Key: memoryKey{ca.Key}}
	}
	own, next := of(fixture.NewCA(t)), of(fixture.NewCA(t))
	is := must.Value(issuer.New(own, nil))(t)
	must.OK(t, is.Next(next))
	for _, ca := range []*issuer.CA{own.CA, next.CA} {
		configured := configuredCA{is, ca.KeySHA256(), noSteps{}}
		for _, fresh := range []*issuer.CA{own.CA, next.CA} {
			if err := configured.Replace(fresh); (err == nil) != (fresh == ca) {
				t.Errorf("%x takes %x: %v", ca.KeySHA256(), fresh.KeySHA256(), err)
			}
		}
		if err := (configuredCA{is, ca.KeySHA256(), wary{}}).Replace(ca); err == nil {
			t.Errorf("%x is taken against the steps", ca.KeySHA256())
		}
	}
}
