package release

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// provenanceFile says from what and how the release was made: an in-toto statement with SLSA's
// predicate (slsa.dev/spec/v1.0/provenance) in a DSSE envelope.
const provenanceFile = "provenance.intoto.jsonl"

const payloadType = "application/vnd.in-toto+json"

type (
	statement struct {
		Type          string    `json:"_type"`
		Subject       []subject `json:"subject"`
		PredicateType string    `json:"predicateType"`
		Predicate     predicate `json:"predicate"`
	}
	subject struct {
		Name   string            `json:"name,omitempty"`
		URI    string            `json:"uri,omitempty"`
		Digest map[string]string `json:"digest"`
	}
	predicate struct {
		Definition definition `json:"buildDefinition"`
		Details    details    `json:"runDetails"`
	}
	definition struct {
		BuildType    string            `json:"buildType"`
		External     map[string]string `json:"externalParameters"`
		Internal     map[string]string `json:"internalParameters"`
		Dependencies []subject         `json:"resolvedDependencies"`
	}
	details struct {
		Builder struct {
			ID string `json:"id"`
		} `json:"builder"`
		Metadata struct {
			Started  time.Time `json:"startedOn"`
			Finished time.Time `json:"finishedOn"`
		} `json:"metadata"`
	}
	envelope struct {
		PayloadType string      `json:"payloadType"`
		Payload     []byte      `json:"payload"`
		Signatures  []signature `json:"signatures"`
	}
	signature struct {
		KeyID string `json:"keyid"`
		Sig   []byte `json:"sig"`
	}
)

// writeProvenance writes the provenance of every file with a checksum. Without a key it has no
// signature.
func (b *build) writeProvenance(key crypto.Signer) error {
	s, err := b.statement()
	if err != nil {
		return err
	}
	payload, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	e := envelope{PayloadType: payloadType, Payload: payload, Signatures: []signature{}}
	if key != nil {
		sig, err := sign(key, signedText(payload))
		if err != nil {
			return err
		}
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return fmt.Errorf("release: %w", err)
		}
		id := sha256.Sum256(spki)
		e.Signatures = append(e.Signatures, signature{hex.EncodeToString(id[:]), sig})
	}
	text, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	if err := os.WriteFile(b.out(provenanceFile), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

// signedText returns what DSSE signs for a payload: its "pre-authentication encoding".
func signedText(payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload),
		payload)
}

func (b *build) statement() (statement, error) {
	sums, err := os.ReadFile(b.out(checksumFile))
	if err != nil {
		return statement{}, fmt.Errorf("release: %w", err)
	}
	s := statement{Type: "https://in-toto.io/Statement/v1",
		PredicateType: "https://slsa.dev/provenance/v1"}
	for lines := bufio.NewScanner(bytes.NewReader(sums)); lines.Scan(); {
		sum, name, _ := strings.Cut(lines.Text(), "  ")
		s.Subject = append(s.Subject, subject{Name: name, Digest: map[string]string{"sha256": sum}})
	}
	d := &s.Predicate.Definition
	d.BuildType = "urn:hsm-signer:make-release:v1"
	d.External = map[string]string{"version": b.version.text,
		epochVariable: fmt.Sprint(b.time.Unix())}
	d.Internal = map[string]string{"nfpm": nfpm, "machine": runtime.GOOS + "/" + runtime.GOARCH}
	for name, version := range b.tools {
		d.Internal[name] = version
	}
	d.Dependencies = append([]subject{{URI: "urn:hsm-signer:source",
		Digest: map[string]string{"gitCommit": b.commit}}}, b.inputs...)
	run := &s.Predicate.Details
	run.Builder.ID = "urn:hsm-signer:make-release"
	run.Metadata.Started, run.Metadata.Finished = b.started.UTC(), time.Now().UTC()
	return s, nil
}
