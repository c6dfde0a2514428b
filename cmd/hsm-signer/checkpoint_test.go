package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/issuer/journal"
)

// Checkpoints verify with their key, and with no other; none is made when there is nothing new.
func TestCheckpoints(t *testing.T) {
	dir := t.TempDir()
	ca := newSoftCA(t)
	j := ca.openJournal(t, dir)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var fault error
	c := &checkpointer{
		journal: &keptJournal{logger: hclog.NewNullLogger(), open: j, refusals: journal.OpenDecisions(t.TempDir(), journal.RefusalsLog, 0)}, public: key.Public(), logger: hclog.NewNullLogger(),
		sign: func(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
			signature, err := key.Sign(rand.Reader, digest, opts)
			return signature, errors.Join(fault, err)
		},
	}
	for i := range 3 {
		ca.issue(t, j, string(rune('a'+i)), time.Hour)
		for range 2 {
			if err := c.make(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := j.Summary().Counts.Checkpoints; n != 3 {
		t.Errorf("%d checkpoints; want one for each change", n)
	}
	last := j.Summary().Head.Seq - 1
	ca.issue(t, j, "d", time.Hour)
	fault = errors.New("the token is gone")
	if err := c.make(t.Context()); !errors.Is(err, fault) || j.Summary().Counts.Checkpoints != 3 {
		t.Errorf("without a signature: %v", err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("CA_CERT_FILE", filepath.Join(dir, "ca.crt"))
	verify := func(public crypto.PublicKey) (string, int) {
		text, err := publicKeyPEM(public)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "checkpoint.pub")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		out, stderr, code := command(t, "audit", "verify", "--checkpoint-key", file, filepath.Join(dir, "state"))
		return out + stderr, code
	}
	if out, code := verify(key.Public()); code != 0 || !strings.Contains(out, "3, which vouch for all up to "+fmt.Sprint(last)+":") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if out, code := verify(other.Public()); code != 2 || !strings.Contains(out, "signature is not by the key") {
		t.Errorf("another key: exit code %d: %s", code, out)
	}
}
