package soak

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	certificatesv1 "k8s.io/api/certificates/v1"

	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
)

// A line is one of the journal, as an auditor reads it who has no hsm-signer.
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

// An account holds what the token has signed against the journal.
type account struct {
	signatures   int // that the token made with the CA's key, all in all
	probes       int // of them over the fixed text
	probeLines   int // in the journal
	again        int // of them over a certificate that was signed before: the same bytes
	unaccounted  int // of them over what is not in the journal
	intents      int
	orphans      int
	certificates map[string][][]byte // DER, by the UID of the request
}

// most is the greatest number of certificates that one request has.
func (a *account) most() int {
	most := 0
	for _, certificates := range a.certificates {
		most = max(most, len(certificates))
	}
	return most
}

// account counts, and has "audit verify" look at the journal.
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

// probe is what test signatures are over.
var probe = sha256.Sum256([]byte("hsm-signer: test signature"))

// read takes note of the journal and returns the digests of all that was to be signed.
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

// count compares each signature, by the digest that was signed, with the journal.
func (a *account) count(calls pkcs11shim.Calls, known map[[sha256.Size]byte]bool) {
	seen := map[[sha256.Size]byte]bool{}
	for _, call := range calls.Of(pkcs11shim.Sign).With(pkcs11.CKR_OK) {
		if call.Signed == nil { // it asked how long a signature will be
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

// requireWhole requires what holds in any weather: every signature is in the journal, test signatures too, no request has two
// certificates, and each of the crowd has in the cluster the one that the journal has.
func (a *account) requireWhole(t *testing.T, c *crowd) {
	t.Helper()
	if a.unaccounted > 0 {
		t.Errorf("%d of %d signatures are of nothing that is in the journal", a.unaccounted, a.signatures)
	}
	if a.probes > a.probeLines {
		t.Errorf("%d test signatures, and %d lines of such in the journal", a.probes, a.probeLines)
	}
	if a.most() > 1 {
		t.Errorf("a request has %d certificates in the journal", a.most())
	}
	now, err := c.requests(t.Context())
	must.OK(t, err)
	for uid, csr := range now {
		if made := a.certificates[string(uid)]; len(made) != 1 || !isOneOf(csr, made) {
			t.Errorf("%s: its certificate is not the one that the journal has, of %d", csr.Name, len(made))
		}
	}
}

// isOneOf tells whether the certificate of the request is one of these.
func isOneOf(csr *certificatesv1.CertificateSigningRequest, made [][]byte) bool {
	block, _ := pem.Decode(csr.Status.Certificate)
	return block != nil && slices.ContainsFunc(made, func(der []byte) bool { return bytes.Equal(der, block.Bytes) })
}
