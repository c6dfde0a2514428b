package daemon

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/hsm"
)

// oneMore is a key that does not sign now; nil: there is none.
type oneMore struct{ key *hsm.Key }

func (o oneMore) other() *hsm.Key { return o.key }

// A fault of the key that does not sign now is shown, and keeps nobody from serving or leading. A
// token that is connected before the journal is open is no fault.
func TestKeyThatDoesNotSignKeepsNobody(t *testing.T) {
	for _, c := range []struct {
		key   *hsm.Key
		fault error
		want  string
	}{
		{nil, nil, ""}, {&hsm.Key{}, nil, "does not sign now: its key could sign"},
		{&hsm.Key{}, errors.New("gone"), "does not sign now: gone"},
		{&hsm.Key{}, hsm.ErrUnproven, "does not sign now: its key could sign"},
	} {
		h := newTestHealth(t)
		h.signing.token.note(nil)
		h.signing.other = newOtherKey(oneMore{c.key}, hclog.NewNullLogger())
		if _, text := readyz(h); strings.Contains(text, "could sign") {
			t.Errorf("before the first look: %s", text)
		}
		h.signing.other.note(c.fault)
		code, text := readyz(h)
		if code != http.StatusOK || h.signing.Fit() != nil ||
			strings.Contains(text, "does not sign now") != (c.want != "") ||
			!strings.Contains(text, c.want) {
			t.Errorf("%v: %d\n%s", c.fault, code, text)
		}
	}
}
