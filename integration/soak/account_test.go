package soak

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
)

// A line is a line of the journal as an auditor without hsm-signer reads it.
type line struct {
	Seq         int
	Time        time.Time
	Kind        string
	UID         string
	Serial      string
	TBS         []byte
	Certificate []byte
	Text        string
	PID         int
	Phase       string    // of a rotation
	Since       time.Time // when its step was decided on
}

// journal returns the lines of the journal.
func (s *signer) journal(t *testing.T) []line {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.state, "journal-*.jsonl"))
	must.OK(t, err)
	slices.Sort(files)
	var lines []line
	for _, file := range files {
		text, err := os.ReadFile(file)
		must.OK(t, err)
		scanner := bufio.NewScanner(bytes.NewReader(text))
		scanner.Buffer(nil, len(text)+1)
		for scanner.Scan() {
			var l line
			must.OK(t, json.Unmarshal(scanner.Bytes(), &l))
			lines = append(lines, l)
		}
	}
	return lines
}

// An account compares the token's signatures with the journal.
type account struct {
	signatures   int // all signatures with the CA's key
	probes       int // signatures over the fixed text
	probeLines   int // test signatures in the journal
	again        int // signatures over bytes of a certificate that were signed before
	unaccounted  int // signatures over bytes that are not in the journal
	intents      int
	orphans      int
	certificates map[string][][]byte // DER, by the UID of the request
}

// most returns the largest number of certificates that one request has.
func (a *account) most() int {
	most := 0
	for _, certificates := range a.certificates {
		most = max(most, len(certificates))
	}
	return most
}

// account counts, and verifies the journal with "audit verify".
func (s *signer) account(t *testing.T) *account {
	t.Helper()
	stdout, stderr, code := s.Command(t.Context(), s.ca, s.env, "audit", "verify")
	if code != 0 {
		t.Errorf("audit verify: exit code %d: %s%s", code, stdout, stderr)
	}
	calls, err := s.shim.Calls()
	must.OK(t, err)
	a := &account{certificates: map[string][][]byte{}}
	known := a.read(s.journal(t))
	a.count(calls, known)
	return a
}

// probe is the digest of the text that test signatures are over.
var probe = sha256.Sum256([]byte("hsm-signer: test signature"))

// read counts the journal's lines and returns the digests of all intents.
func (a *account) read(lines []line) (known map[[sha256.Size]byte]bool) {
	known = map[[sha256.Size]byte]bool{}
	for _, l := range lines {
		switch l.Kind {
		case "intent":
			a.intents++
			known[sha256.Sum256(l.TBS)] = true
		case "signed":
			a.certificates[l.UID] = append(a.certificates[l.UID], l.Certificate)
		case "orphaned":
			a.orphans++
		case "probe":
			a.probeLines++
		}
	}
	return known
}

// count compares the digest of each signature with the journal.
func (a *account) count(calls pkcs11shim.Calls, known map[[sha256.Size]byte]bool) {
	seen := map[[sha256.Size]byte]bool{}
	for _, call := range calls.Of(pkcs11shim.Sign).With(pkcs11.CKR_OK) {
		if call.Signed == nil { // a call for the length of the signature
			continue
		}
		a.signatures++
		digest := [sha256.Size]byte(call.Signed)
		switch {
		case digest == probe:
			a.probes++
		case !known[digest]:
			a.unaccounted++
		case seen[digest]:
			a.again++
		}
		seen[digest] = true
	}
}

// requireWhole requires what holds under any fault. Every signature is in the journal, also test
// signatures. No request has two certificates, and the cluster has those of the journal.
func (a *account) requireWhole(t *testing.T, c *batch) {
	t.Helper()
	if a.unaccounted > 0 {
		t.Errorf("%d of %d signatures are not in the journal", a.unaccounted, a.signatures)
	}
	if a.probes > a.probeLines {
		t.Errorf("%d test signatures, but %d in the journal", a.probes, a.probeLines)
	}
	if a.most() > 1 {
		t.Errorf("a request has %d certificates in the journal", a.most())
	}
	now, err := c.answers(t.Context())
	must.OK(t, err)
	for uid, answer := range now {
		if made := a.certificates[string(uid)]; len(made) != 1 || !answer.isOneOf(made) {
			t.Errorf("%s: its certificate is none of the %d in the journal", answer.name, len(made))
		}
	}
}
