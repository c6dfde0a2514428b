package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/testenv"
	"hsm-signer/integration/tokens"
)

// A station is hsm-signer with its own token behind a shim, and a CA in that token.
type station struct {
	token *tokens.Token
	shim  *pkcs11shim.Shim
	env   []string
	ca    testenv.CA
}

func newStation(t *testing.T, kind tokens.Kind) *station {
	t.Helper()
	token := must.Get(kind.New(t.Context()))(t)
	t.Cleanup(func() { must.OK(t, token.Close()) })
	s := must.Get(pkcs11shim.New(t.Context(), t.TempDir(), token.Module))(t)
	dir := t.TempDir()
	return &station{token: token, shim: s,
		ca: testenv.CA{KeyLabel: "ca", CertFile: filepath.Join(dir, "ca.crt")},
		env: slices.Concat(token.Env, s.Env(), []string{
			"PKCS11_TOKEN_LABEL=" + token.Label, "PKCS11_PIN=" + token.PIN,
			"STATE_DIR=" + filepath.Join(dir, "state"), withBudget(t, "{perPod: 1000}"),
		})}
}

// command requires exit code 0, and returns the output.
func (s *station) command(t *testing.T, args ...string) string {
	t.Helper()
	return command(t, s.ca, s.env, args...).prints(t, 0)
}

// requireKey requires that the new key has an id, and that nothing was deleted.
func (s *station) requireKey(t *testing.T) {
	t.Helper()
	var shown struct{ Key struct{ ID string } }
	must.OK(t, json.Unmarshal([]byte(s.command(t, "ca", "show", "--output", "json")), &shown))
	if len(shown.Key.ID) != 16 {
		t.Errorf("the key's id is %q, and not 8 random bytes", shown.Key.ID)
	}
	if calls := callsOf(t, s.shim); calls.Count("C_GenerateKeyPair") == 0 ||
		calls.Count("C_DestroyObject") > 0 {
		t.Errorf("a key was made and none deleted:\n%s", calls)
	}
}

// A loss makes the token unavailable between begin and end.
type loss struct {
	rules      []pkcs11shim.Rule
	begin, end func(context.Context) error
}

// losses returns the losses after which a process connects to this token again.
func (s *station) losses() []loss {
	nothing := func(context.Context) error { return nil }
	device := []pkcs11shim.Rule{pkcs11shim.Fail(pkcs11shim.Sign,
		pkcs11.CKR_DEVICE_REMOVED).Times(1)}
	all := []loss{{device, nothing, nothing},
		{[]pkcs11shim.Rule{pkcs11shim.CloseSessions(pkcs11shim.SignInit)}, nothing, nothing}}
	if s.token.HasDaemon() {
		all = append(all,
			loss{device, func(context.Context) error { return s.token.Kill() }, s.token.Start})
	}
	return all
}

// On every kind of token the ceremony creates a CA and check passes. One process survives the loss
// of the token under load: each request gets one certificate, and the journal verifies.
func TestEveryKindOfToken(t *testing.T) {
	for _, kind := range tokens.All() {
		t.Run(kind.Name, func(t *testing.T) {
			s := newStation(t, kind)
			s.command(t, "ca", "create", "--key-type", s.token.Can.KeyTypes[0], "--out",
				s.ca.CertFile)
			checked := s.command(t, "check")
			s.requireKey(t)
			d := startReady(t, s.ca, s.env...)
			checks := strings.Contains(checked, "warning  key cannot leave ")
			logs := strings.Contains(d.Log(), "CKA_LOCAL=0 (should be 1)")
			if checks == s.token.Can.Local || logs == s.token.Can.Local {
				t.Errorf("an attribute that is not as it should be: check warns %t, the log %t",
					checks, logs)
			}
			p := newPod(t, node)
			requests := 0
			ask := func(n int) (asked []calico.InitContainer) {
				for range n {
					requests++
					asking := p.InitContainer(node)
					asking.SecretName = fmt.Sprintf("token-%s-%d", kind.Name, requests)
					submit(t, p, asking)
					asked = append(asked, asking)
				}
				return asked
			}
			for _, lose := range s.losses() {
				must.OK(t, s.shim.Rules(lose.rules...))
				asked := ask(4)
				must.OK(t, lose.begin(t.Context()))
				asked = append(asked, ask(4)...)
				must.OK(t, lose.end(t.Context()))
				for _, asking := range asked {
					requireOpenSSL(t, s.ca, requireAnswered(t, p, asking))
				}
			}
			if calls := callsOf(t, s.shim).By(d.PID()); calls.Count(pkcs11shim.Initialize) < 2 {
				t.Errorf("the module was not initialized again:\n%s", calls)
			}
			s.command(t, "audit", "verify")
			list := s.command(t, "audit", "list", "--output", "json")
			if n := strings.Count(list, "\n"); n != requests {
				t.Errorf("%d certificates for %d requests", n, requests)
			}
		})
	}
}
