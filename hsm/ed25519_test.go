package hsm

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"testing"
)

func TestEd25519SignsMessages(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	mech, err := mechanismFor(public)
	if err != nil {
		t.Fatal(err)
	}
	text := testText(crypto.Hash(0))
	_, input, err := mech.prepare(text, crypto.Hash(0))
	if err != nil || !bytes.Equal(input, text) {
		t.Fatalf("input %q, %v", input, err)
	}
	if signature, err := mech.finish(ed25519.Sign(private, input)); err != nil || !verifies(public, crypto.Hash(0), text, signature) {
		t.Errorf("the signature does not verify: %v", err)
	}
	if _, _, err := mech.prepare(make([]byte, 32), crypto.SHA256); err == nil {
		t.Error("a digest is signed")
	}
}
