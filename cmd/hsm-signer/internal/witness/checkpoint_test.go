package witness

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/audit"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
	"hsm-signer/issuer/journal"
)

// openWriter is a journal that is open.
type openWriter struct{ writer *journal.Writer }

func (o openWriter) Writer() *journal.Writer { return o.writer }

// softCheckpoints makes checkpoints of the journal with a key in memory, and writes its public half
// to a file.
func softCheckpoints(t *testing.T, j *journal.Writer) (c *Checkpointer, public string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.OK(t, err)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	must.OK(t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	public = filepath.Join(t.TempDir(), "checkpoint.pub")
	must.OK(t, os.WriteFile(public, text, 0o600))
	return NewCheckpointer(openWriter{j}, NewKey(softKey{key}, key.Public()), 0,
		hclog.NewNullLogger()), public
}

// A softKey signs with a key in memory.
type softKey struct{ crypto.Signer }

// Sign is [Signer]'s.
func (k softKey) Sign(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.Signer.Sign(rand.Reader, digest, opts)
}

// A missingKey is one whose token is gone.
type missingKey struct{ fault error }

// Sign is [Signer]'s.
func (k missingKey) Sign(context.Context, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, k.fault
}

// Checkpoints verify with their key, and with no other; none is made when there is nothing new.
func TestCheckpoints(t *testing.T) {
	dir := t.TempDir()
	ca := fixture.NewCA(t)
	j := ca.OpenJournal(t, dir)
	c, public := softCheckpoints(t, j)
	for i := range 3 {
		ca.Issue(t, j, string(rune('a'+i)), time.Hour)
		for range 2 {
			must.OK(t, c.make(t.Context()))
		}
	}
	if n := j.Summary().Counts.Checkpoints; n != 3 {
		t.Errorf("%d checkpoints; want one for each change", n)
	}
	last := j.Summary().Head.Seq - 1
	ca.Issue(t, j, "d", time.Hour)
	fault := errors.New("the token is gone")
	c.key = NewKey(missingKey{fault}, c.key.public)
	if err := c.make(t.Context()); !errors.Is(err, fault) || j.Summary().Counts.Checkpoints != 3 {
		t.Errorf("without a signature: %v", err)
	}
	_, other := softCheckpoints(t, j)
	t.Setenv("CA_CERT_FILE", filepath.Join(dir, "ca.crt"))
	verify := func(public string) (string, int) {
		out, stderr, code := command(t, "audit", "verify", "--checkpoint-key", public,
			filepath.Join(dir, "state"))
		return out + stderr, code
	}
	if out, code := verify(public); code != 0 ||
		!strings.Contains(out, "3, which vouch for all up to "+fmt.Sprint(last)+":") ||
		!strings.Contains(out, "checkpoints vouch for the chain, except its last 3 lines") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if out, code := verify(other); code != 2 ||
		!strings.Contains(out, "signature is not by the key") {
		t.Errorf("another key: exit code %d: %s", code, out)
	}
}

// Whoever can write the journal can compute its chain again. With the key of the checkpoints that
// shows: they are missing, for another chain, or too old.
func TestACheckpointKeyShowsAForgedChain(t *testing.T) {
	dir := t.TempDir()
	ca := fixture.NewCA(t)
	j := ca.OpenJournal(t, dir)
	c, public := softCheckpoints(t, j)
	ca.Issue(t, j, "a", time.Hour)
	must.OK(t, c.make(t.Context()))
	ca.Issue(t, j, "b", time.Hour)
	c.Finish()
	must.OK(t, j.Close())
	text, err := os.ReadFile(filepath.Join(dir, "state", "journal-00000001.jsonl"))
	must.OK(t, err)
	t.Setenv("CA_CERT_FILE", filepath.Join(dir, "ca.crt"))
	forged := t.TempDir()
	same := func(line []byte) []byte { return line }
	// 1 opened, 3 of a, 1, 3 of b, this
	lastCheckpoint := bytes.LastIndex(text, []byte(`{"seq":9,`))
	path := filepath.Join(dir, "state", "journal-00000001.jsonl")
	for name, c := range map[string]struct {
		text  []byte
		words string // of the fault; empty: there is none
	}{
		"nothing changed": {fixture.Rechain(t, text, same), ""},
		"orphaned": {fixture.Rechain(t, text, fixture.Orphaned("b")),
			"the checkpoint is for line 8"},
		"orphaned, and checkpoints removed": {fixture.Rechain(t,
			fixture.Rechain(t, text,
				fixture.Orphaned("b")), fixture.WithoutCheckpoints),
			"no checkpoint covers any of its lines"},
		"checkpoints removed": {fixture.Rechain(t, text, fixture.WithoutCheckpoints),
			"no checkpoint covers any of its lines"},
		// but see below
		"orphaned, and last checkpoint gone": {fixture.Rechain(t, text[:lastCheckpoint],
			fixture.Orphaned("b")), ""},
	} {
		must.OK(t, os.WriteFile(filepath.Join(forged, "journal-00000001.jsonl"), c.text,
			0o600))
		if _, stderr, code := command(t, "audit", "verify", forged); code != 0 &&
			!strings.HasPrefix(c.words, "the checkpoint") {
			t.Errorf("%s, without the key: exit code %d: %s", name, code, stderr)
		}
		out, stderr, code := command(t, "audit", "verify", "--checkpoint-key", public, forged)
		if want := map[bool]int{true: 0, false: 2}[c.words == ""]; code != want ||
			!strings.Contains(stderr, c.words) {
			t.Errorf("%s: exit code %d, want %d and %q: %s%s", name, code, want, c.words, out,
				stderr)
		}
		must.OK(t, os.WriteFile(path, c.text, 0o600))
		if out, err := fixture.VerifyByHand(t, dir, "",
			"CHECKPOINT_PUBLIC_KEY_FILE="+public); (err != nil) != (c.words != "") {
			t.Errorf("%s, by hand: %v: %s", name, err, out)
		}
	}
	must.OK(t, os.WriteFile(filepath.Join(forged, "journal-00000001.jsonl"), text[:lastCheckpoint],
		0o600))
	must.OK(t, os.WriteFile(path, text[:lastCheckpoint], 0o600))
	for limit, wrong := range map[string]bool{"3600": false, "-1": true} {
		if out, err := fixture.VerifyByHand(t, dir, "", "CHECKPOINT_PUBLIC_KEY_FILE="+public,
			"MAX_UNVOUCHED="+limit); (err != nil) != wrong {
			t.Errorf("by hand, at most %s seconds: %v: %s", limit, err, out)
		}
	}
	out, _, _ := command(t, "audit", "verify", "--checkpoint-key", public, "--output", "json",
		forged)
	var summary journal.Summary
	if err := json.Unmarshal([]byte(out), &summary); err != nil || summary.Unvouched != 3 {
		t.Fatalf("%v: %s", err, out)
	}
	verify := audit.AuditVerify{CheckpointKey: public, Limit: 2 * time.Hour}
	for later, wrong := range map[time.Duration]bool{time.Hour: false, 3 * time.Hour: true} {
		if err := verify.Vouched(summary, summary.VouchedAt.Add(later)); (err != nil) != wrong {
			t.Errorf("after %s: %v", later, err)
		}
	}
	// nothing but checkpoints follows: hsm-signer has ended, or the journal is in the archive
	summary.Unvouched = 0
	if err := verify.Vouched(summary, summary.VouchedAt.Add(time.Hour*24*365)); err != nil {
		t.Error(err)
	}
}
