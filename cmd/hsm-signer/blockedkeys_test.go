package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/policy"
)

// blockFile writes a list that blocks the key of a request.
func blockFile(t *testing.T, request string) string {
	t.Helper()
	text, err := os.ReadFile(request)
	must(t, err)
	block, _ := pem.Decode(text)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	must(t, err)
	sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	file := filepath.Join(t.TempDir(), "blocked")
	must(t, os.WriteFile(file, []byte(hex.EncodeToString(sum[:])+"\n"), 0o600))
	return file
}

func TestExplainRefusesBlockedKeys(t *testing.T) {
	request := requestFile(t, asPEM, "typha-server")
	args := append([]string{"policy", "explain", request, "--blocked-keys-file", blockFile(t, request)}, typhaFlags...)
	if out, stderr, code := command(t, args...); code != exitRefused || !strings.Contains(out, "rule blocked-keys: request.publicKey is blocked") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	other := requestFile(t, asPEM, "typha-server")
	args[2] = other
	if out, stderr, code := command(t, args...); code != 0 {
		t.Errorf("another key: exit code %d: %s%s", code, out, stderr)
	}
}

func TestBlockedKeysFileIsChecked(t *testing.T) {
	variables := completeConfig(t)
	good, bad := strings.Repeat("0", 64)+"\n", "none\n"
	file := filepath.Join(t.TempDir(), "blocked")
	for _, c := range []struct {
		text  string
		mode  os.FileMode
		fault string
	}{
		{good, 0o644, ""},
		{good, 0o666, "can be written by everyone"},
		{bad, 0o644, "blocked: the list of blocked keys has 1 mistake(s):\n  line 1: "},
		{"", 0o644, "is empty"},
	} {
		must(t, os.WriteFile(file, []byte(c.text), 0o600))
		must(t, os.Chmod(file, c.mode))
		variables["BLOCKED_KEYS_FILE"] = file
		_, faults := configFaultsOf(t, variables)
		if c.fault == "" && len(faults) > 0 || c.fault != "" && (len(faults) != 1 || !strings.HasPrefix(faults[0], "BLOCKED_KEYS_FILE: ") || !strings.Contains(faults[0], c.fault)) {
			t.Errorf("%q, mode %04o: %q", c.text, c.mode, faults)
		}
	}
	variables["BLOCKED_KEYS_FILE"] = file + ".gone"
	if _, faults := configFaultsOf(t, variables); len(faults) != 1 || !strings.HasPrefix(faults[0], "BLOCKED_KEYS_FILE: ") {
		t.Errorf("%q", faults)
	}
}

// A changed list comes into force, with a built-in policy too; a bad one is refused, and what was
// blocked stays so.
func TestBlockedKeysAreReloaded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "blocked")
	write := func(text string) {
		t.Helper()
		must(t, os.WriteFile(file, []byte(text), 0o600))
	}
	write(strings.Repeat("0", 64))
	c := &config{policyFile: "calico", blockedKeysFile: file, clusterDomain: "cluster.local", lifetime: time.Hour}
	p := c.loadPolicy(&configFaults{})
	var log bytes.Buffer
	r := newPolicyReloader(c, policy.NewCurrent(p), genericCA(t), newMetrics(), hclog.New(&hclog.LoggerOptions{Output: &log}))
	r.changed, r.warn = func() {}, func(string, string) {}
	r.look()
	if r.current.Policy() != p || log.Len() > 0 {
		t.Errorf("an unchanged file was taken for a changed one: %s", &log)
	}
	write("x\n")
	r.look()
	if r.current.Policy() != p || !strings.Contains(r.state(), "BLOCKED_KEYS_FILE: "+file) || !strings.Contains(r.state(), "line 1: ") {
		t.Errorf("a bad file: %s; state: %s", &log, r.state())
	}
	write(strings.Repeat("0", 64) + "\n" + strings.Repeat("1", 64))
	r.look()
	r.look()
	if now := r.current.Policy(); now == p || now.BlockedKeys().Len() != 2 || strings.Contains(r.state(), "refused") {
		t.Errorf("a good file did not come into force: %s; state: %s", &log, r.state())
	}
	must(t, os.Remove(file))
	r.look()
	if r.current.Policy().BlockedKeys().Len() != 2 || !strings.Contains(r.state(), "refused") {
		t.Errorf("without the file: %s", r.state())
	}
}
