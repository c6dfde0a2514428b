package health

import (
	"errors"
	"strings"
	"testing"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/credential"
)

// credentials stand as they say.
type credentials struct {
	expiries []credential.Expiry
	refusal  error
}

func (c credentials) Expiries() []credential.Expiry { return c.expiries }
func (c credentials) Refusal() error                { return c.refusal }

// An expired credential is not ready; one to be renewed, or a refused kubeconfig, is a remark.
func TestPartOfTheCredential(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	ends := func(left time.Duration) []credential.Expiry {
		return []credential.Expiry{{Kind: credential.Token, NotBefore: now.Add(left - time.Hour),
			NotAfter: now.Add(left)}}
	}
	for _, c := range []struct {
		state     credentials
		err, note string
	}{
		{credentials{}, "", ""},
		{credentials{expiries: ends(50 * time.Minute)}, "", ""},
		{credentials{expiries: ends(5 * time.Minute)}, "", "renew it: token: expires in 5 minutes"},
		{credentials{expiries: ends(0)}, "token: expired at", ""},
		{credentials{refusal: errors.New("a mistake")}, "", "is refused: a mistake"},
	} {
		p := credentialPart(c.state, now)
		if (p.Err == nil) != (c.err == "") ||
			p.Err != nil && !strings.Contains(p.Err.Error(), c.err) ||
			(p.Note == "") != (c.note == "") || !strings.Contains(p.Note, c.note) {
			t.Errorf("%+v: %+v", c.state, p)
		}
	}
}
