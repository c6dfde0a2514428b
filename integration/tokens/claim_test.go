package tokens

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"hsm-signer/integration/must"
)

// Files of the system that a token replaces are restored, even if the process that replaced them
// was killed.
func TestReplacedFilesComeBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "configuration")
	put := func(text string) func() error {
		return func() error { return os.WriteFile(path, []byte(text), 0o600) }
	}
	require := func(want string) {
		t.Helper()
		if got, err := os.ReadFile(path); string(got) != want || want != "" && err != nil {
			t.Errorf("it holds %q, %v; want %q", got, err, want)
		}
	}
	for _, before := range []string{"the system's", ""} {
		must.OK(t, os.RemoveAll(path))
		if before != "" {
			must.OK(t, put(before)())
		}
		killed, next := &Token{Name: "killed"}, &Token{Name: "next"}
		for _, token := range []*Token{killed, next} {
			must.OK(t, token.replace(path, put(token.Name)))
			require(token.Name)
		}
		must.OK(t, next.Close())
		require(before)
	}
}

// A failed constructor leaves nothing behind.
func TestFailureLeavesNothing(t *testing.T) {
	var dir string
	wrong := errors.New("wrong")
	_, err := newToken(t.Context(), &Token{Name: "none"},
		func(_ context.Context, token *Token) error {
			dir = token.dir
			return wrong
		})
	if !errors.Is(err, wrong) {
		t.Errorf("the error is %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory is left: %v", err)
	}
}

// A second token that needs the same resource waits.
func TestClaimIsForOne(t *testing.T) {
	const name = "test-of-claims"
	t.Cleanup(func() { os.Remove(filepath.Join(os.TempDir(), "hsm-signer-"+name+".lock")) })
	first, second := &Token{Name: "first"}, &Token{Name: "second"}
	must.OK(t, first.claim(t.Context(), name))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := second.claim(ended, name); err == nil {
		t.Error("both have it")
	}
	must.OK(t, first.Close())
	if err := second.claim(t.Context(), name); err != nil {
		t.Errorf("the first has given it back: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}
