package keyring

import (
	"encoding/pem"
	"errors"
	"testing"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/hsm"
	"hsm-signer/internal/must"
	"hsm-signer/issuer"
)

// A testIssuer signs under that CA.
type testIssuer struct{ ca *issuer.CA }

func (i testIssuer) CA() *issuer.CA { return i.ca }

// A fault of the key that does not sign now is kept. A token that is connected before the journal
// is open is no fault, and without a rotation there is no such key.
func TestFaultOfTheKeyThatDoesNotSign(t *testing.T) {
	ca := func() *issuer.CA {
		return must.Value(issuer.ParseCA(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
			Bytes: fixture.NewCA(t).Certificate.Raw})))(t)
	}
	signs, next := ca(), ca()
	ring := New(testIssuer{signs})
	ring.Add(signs, &hsm.Key{})
	o := NewOtherWatch(ring, hclog.NewNullLogger())
	if exists, err := o.Fault(); exists || err != nil {
		t.Errorf("without a rotation: %t, %v", exists, err)
	}
	ring.Add(next, &hsm.Key{})
	if exists, err := o.Fault(); !exists || !errors.Is(err, errNotLooked) {
		t.Errorf("before the first look: %t, %v", exists, err)
	}
	gone := errors.New("gone")
	for noted, want := range map[error]error{nil: nil, gone: gone, hsm.ErrUnproven: nil} {
		o.note(noted)
		if exists, err := o.Fault(); !exists || !errors.Is(err, want) {
			t.Errorf("%v: %t, %v", noted, exists, err)
		}
	}
}
