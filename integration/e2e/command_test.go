package e2e

import (
	"strings"
	"testing"

	"hsm-signer/integration/testenv"
)

// A printout is what a command of hsm-signer has printed, and its exit code.
type printout struct {
	args           []string
	stdout, stderr string
	code           int
}

// command runs a command of hsm-signer with the CA and these variables.
func command(t *testing.T, ca testenv.CA, env []string, args ...string) printout {
	t.Helper()
	stdout, stderr, code := shared.Command(t.Context(), ca, env, args...)
	return printout{args, stdout, stderr, code}
}

// prints requires this exit code, and these words on stdout, which it returns.
func (p printout) prints(t *testing.T, code int, words ...string) string {
	t.Helper()
	p.require(t, code, p.stdout, words)
	return p.stdout
}

// complains requires this exit code, and these words on stderr, which it returns.
func (p printout) complains(t *testing.T, code int, words ...string) string {
	t.Helper()
	p.require(t, code, p.stderr, words)
	return p.stderr
}

func (p printout) require(t *testing.T, code int, text string, words []string) {
	t.Helper()
	for _, want := range words {
		if !strings.Contains(text, want) {
			t.Fatalf("%v: %q is missing; exit code %d:\n%s%s", p.args, want, p.code, p.stdout,
				p.stderr)
		}
	}
	if p.code != code {
		t.Fatalf("%v: exit code %d, want %d:\n%s%s", p.args, p.code, code, p.stdout, p.stderr)
	}
}

// lacks requires that these words are in neither output.
func (p printout) lacks(t *testing.T, words ...string) {
	t.Helper()
	for _, secret := range words {
		if strings.Contains(p.stdout+p.stderr, secret) {
			t.Errorf("%v prints %q:\n%s%s", p.args, secret, p.stdout, p.stderr)
		}
	}
}

// requireCheck requires that check exits with this code and prints these words.
func requireCheck(t *testing.T, env []string, code int, words ...string) {
	t.Helper()
	command(t, ca, env, "check").prints(t, code, words...)
}
