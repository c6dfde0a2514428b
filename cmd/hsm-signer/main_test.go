package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/cli"
	"hsm-signer/internal/must"
)

func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = cli.Execute(t.Context(), newRootCommand(), args, &out, &errs)
	return out.String(), errs.String(), code
}

// preparedRoot is the root command as it is executed.
func preparedRoot() *cobra.Command {
	root := newRootCommand()
	cli.Prepare(root)
	return root
}

func TestPolicyShow(t *testing.T) {
	for _, args := range [][]string{{"policy", "show"}, {"policy", "show", "calico"}} {
		if out, stderr, code := command(t, args...); code != 0 ||
			!strings.Contains(out, "typha-server") {
			t.Errorf("%v: exit code %d: %s", args, code, stderr)
		}
	}
	if out, stderr, code := command(t, "policy", "show", "pods"); code != 0 ||
		!strings.Contains(out, "{trustDomain}") {
		t.Errorf("without TRUST_DOMAIN: exit code %d: %s", code, stderr)
	}
	if _, stderr, code := command(t, "policy", "show", "nonsense"); code != 4 ||
		!strings.Contains(stderr, "calico-legacy") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestUnknownFlagIsConfiguration(t *testing.T) {
	if _, stderr, code := command(t, "run", "--signer-nmae", "x"); code != 4 ||
		!strings.Contains(stderr, "run --help") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestUnknownCommandIsConfiguration(t *testing.T) {
	for _, args := range [][]string{{"foo"}, {"ca", "craete"}, {"policy", "shw"}, {"run", "extra"},
		{"policy", "show", "a", "b"}} {
		if _, stderr, code := command(t, args...); code != 4 ||
			!strings.Contains(stderr, "--help") {
			t.Errorf("%v: exit code %d: %s", args, code, stderr)
		}
	}
	if out, _, code := command(t, "ca"); code != 0 || !strings.Contains(out, "ceremony") {
		t.Errorf("ca alone: exit code %d: %s", code, out)
	}
}

func TestThereIsNoFlagForThePIN(t *testing.T) {
	if _, stderr, code := command(t, "run", "--pkcs11-pin", "1234"); code != 4 ||
		!strings.Contains(stderr, "unknown flag") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestVersion(t *testing.T) {
	if out, _, code := command(t, "version"); code != 0 ||
		!strings.Contains(out, "FIPS 140-3: module ") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func TestVersionFlag(t *testing.T) {
	want, _, _ := command(t, "version")
	if out, stderr, code := command(t, "--version"); code != 0 || out != want {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	if _, _, code := command(t, "-v"); code != 4 {
		t.Errorf("-v: exit code %d", code)
	}
}

// A policy in a file is shown, whoever owns it, unless it has mistakes.
func TestPolicyShowFile(t *testing.T) {
	dir := t.TempDir()
	file, mistaken := filepath.Join(dir, "mine.yaml"), filepath.Join(dir, "mistaken.yaml")
	calico, _, _ := command(t, "policy", "show", "calico")
	must.OK(t, os.WriteFile(file, []byte(calico), 0o600))
	must.OK(t, os.Chmod(file, 0o666))
	must.OK(t, os.WriteFile(mistaken, []byte("version: 1\nrulez: []\n"), 0o600))
	if out, stderr, code := command(t, "policy", "show", file); code != 0 || out != calico {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	if out, stderr, code := command(t, "policy", "show", mistaken); code != 4 || out != "" ||
		!strings.Contains(stderr, "FILE: "+mistaken) || !strings.Contains(stderr, "line 2: ") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
}
