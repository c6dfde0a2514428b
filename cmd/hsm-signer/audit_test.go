package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
)

// A softCA is one whose key is in memory.
type softCA struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

func newSoftCA(t *testing.T) softCA {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return softCA{makeCertificate(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{1},
	}, nil, public, key), key}
}

// issue writes into the journal that a request got a certificate of this lifetime.
func (ca softCA) issue(t *testing.T, j *journal.Journal, uid string, lifetime time.Duration) {
	t.Helper()
	intent, signed := ca.certify(t, j, uid, lifetime)
	write(t, j, intent, signed, journal.Published{UID: uid, Serial: intent.Serial})
}

// begin writes into the journal that a request was begun, and signed or not, and then given up.
func (ca softCA) begin(t *testing.T, j *journal.Journal, uid string, isSigned bool) {
	t.Helper()
	intent, signed := ca.certify(t, j, uid, time.Hour)
	if write(t, j, intent); isSigned {
		write(t, j, signed)
	}
	write(t, j, journal.Orphaned{UID: uid, Serial: intent.Serial, Why: "the request was denied or has failed"})
}

func (ca softCA) certify(t *testing.T, j *journal.Journal, uid string, lifetime time.Duration) (journal.Intent, journal.Signed) {
	t.Helper()
	serial, err := j.ID().NewSerial()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "typha-server"}, NotAfter: time.Now().Add(lifetime)}
	cert, text := makeCertificate(t, template, ca.cert, ca.key.Public(), ca.key), journal.FormatSerial(serial)
	signed, err := journal.NewSigned(uid, cert.Raw, ca.cert)
	if err != nil {
		t.Fatal(err)
	}
	return journal.Intent{UID: uid, Name: "typha-" + uid, Requester: policy.Requester{Username: "system:serviceaccount:calico-system:calico-typha\x1b[1m"}, Names: []string{"CN=typha-server"}, Serial: text, TBS: cert.RawTBSCertificate},
		signed
}

func write(t *testing.T, j *journal.Journal, entries ...journal.Entry) {
	t.Helper()
	for _, e := range entries {
		if err := j.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

// openJournal opens the journal in DIR/state and puts the CA's certificate into DIR/ca.crt.
func (ca softCA) openJournal(t *testing.T, dir string) *journal.Journal {
	t.Helper()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(filepath.Join(dir, "state"), journal.Options{CA: ca.cert, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

// madeJournal makes a journal of certificates with these lifetimes in DIR/state; the CA's certificate is in
// DIR/ca.crt.
func madeJournal(t *testing.T, lifetimes ...time.Duration) (dir string) {
	t.Helper()
	dir = t.TempDir()
	ca := newSoftCA(t)
	j := ca.openJournal(t, dir)
	for i, lifetime := range lifetimes {
		ca.issue(t, j, string(rune('a'+i)), lifetime)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// makeCertificate signs with the CA, or with the key itself where there is none.
func makeCertificate(t *testing.T, template, ca *x509.Certificate, public, key any) *x509.Certificate {
	t.Helper()
	if ca == nil {
		ca = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestAuditVerify(t *testing.T) {
	dir := madeJournal(t, time.Hour, time.Hour)
	t.Setenv("CA_CERT_FILE", filepath.Join(dir, "ca.crt"))
	t.Setenv("STATE_DIR", filepath.Join(dir, "state"))
	out, stderr, code := command(t, "audit", "verify")
	if code != 0 || !strings.Contains(out, "2 are published") || !strings.Contains(out, "nothing vouches for the chain") || stderr != "" {
		t.Fatalf("exit code %d: %s %s", code, out, stderr)
	}
	head := regexp.MustCompile(`head +(\S+)`).FindStringSubmatch(out)[1]
	out, _, code = command(t, "audit", "verify", "--output", "json", "--witness", head)
	var summary journal.Summary
	if err := json.Unmarshal([]byte(out), &summary); err != nil || code != 0 || summary.Head.String() != head {
		t.Errorf("exit code %d: %s: %v", code, out, err)
	}
	copied := filepath.Join(t.TempDir(), "journal-00000001.jsonl")
	text, err := os.ReadFile(filepath.Join(dir, "state", "journal-00000001.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	last := bytes.LastIndexByte(text[:len(text)-1], '\n') + 1
	for name, c := range map[string]struct {
		text  []byte
		words string
	}{
		"renamed, with another chain": {
			rechain(t, text, func(line []byte) []byte {
				return bytes.Replace(line, []byte("CN=typha-server"), []byte("CN=typha-clients"), 1)
			}), "line 2: the names are",
		},
		"changed":    {bytes.Replace(text, []byte("typha-b"), []byte("typha-c"), 1), "journal-00000001.jsonl, line 5: its hash is"},
		"cut off":    {text[:last], "journal-00000001.jsonl, line 7: the journal ends with line 6"},
		"cut within": {text[:last+20], "the journal ends with line 6, but a witness has seen line 7"},
		"unending":   {append(text[:len(text):len(text)], "{"...), "1 bytes that are no whole line"},
		"empty":      {nil, "this is no journal"},
	} {
		if err := os.WriteFile(copied, c.text, 0o600); err != nil {
			t.Fatal(err)
		}
		args := []string{"audit", "verify", filepath.Dir(copied)}
		if !strings.HasPrefix(name, "renamed") { // which shows without any witness
			args = append(args, "--witness", head)
		}
		if _, stderr, code := command(t, args...); code != 2 || !strings.Contains(stderr, c.words) {
			t.Errorf("%s: exit code %d: %s", name, code, stderr)
		}
	}
	t.Setenv("CA_CERT_FILE", filepath.Join(madeJournal(t), "ca.crt"))
	if _, stderr, code := command(t, "audit", "verify"); code != 2 || !strings.Contains(stderr, "line 3: the certificate") {
		t.Errorf("another CA: exit code %d: %s", code, stderr)
	}
	if _, stderr, code := command(t, "audit", "verify", "--former-ca", filepath.Join(dir, "ca.crt")); code != 0 {
		t.Errorf("a former CA: exit code %d: %s", code, stderr)
	}
	if _, stderr, code := command(t, "audit", "verify", "--witness", "x", "--checkpoint-key", "none", "--max-unvouched", "x", "-o", "x"); code != 4 || strings.Count(stderr, "\n  --") != 4 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if _, _, code := command(t, "audit", "verify", filepath.Join(dir, "nowhere")); code != 1 {
		t.Errorf("no directory: exit code %d", code)
	}
}

func TestAuditList(t *testing.T) {
	dir := madeJournal(t, time.Hour, 48*time.Hour, -time.Hour)
	t.Setenv("STATE_DIR", filepath.Join(dir, "state"))
	for want, args := range map[string][]string{
		"abc": nil, "ca": {"--expiring", "1d"}, "cab": {"--expiring", "72h"}, "c": {"--expiring", "1m"},
	} {
		out, stderr, code := command(t, append([]string{"audit", "list", "-o", "json"}, args...)...)
		got := ""
		for decoder := json.NewDecoder(strings.NewReader(out)); decoder.More(); {
			var view issuedView
			if err := decoder.Decode(&view); err != nil {
				t.Fatal(err)
			}
			got += view.UID
			if cert, err := x509.ParseCertificate(view.Certificate); err != nil || journal.FormatSerial(cert.SerialNumber) != view.Serial || view.State != "published" {
				t.Errorf("%+v: %v", view, err)
			}
		}
		if got != want || code != 0 {
			t.Errorf("%v: %q, not %q; exit code %d: %s", args, got, want, code, stderr)
		}
	}
	out, _, code := command(t, "audit", "list")
	if code != 0 || strings.Count(out, "\n") != 4 || !strings.Contains(out, `calico-typha\x1b[1m`) || !strings.Contains(out, "CN=typha-server") {
		t.Errorf("exit code %d: %s", code, out)
	}
	for _, bad := range []string{"30", "-3d", "0h", "d", "x"} {
		if _, stderr, code := command(t, "audit", "list", "--expiring", bad); code != 4 || !strings.Contains(stderr, "30d") {
			t.Errorf("%s: exit code %d: %s", bad, code, stderr)
		}
	}
}

// Of what a pod got for a signer and a name only the newest counts, whichever ends first; and without a cluster it is
// said that nobody knows which pods live.
func TestAuditListExpiringCountsTheNewest(t *testing.T) {
	dir := t.TempDir()
	ca := newSoftCA(t)
	j := ca.openJournal(t, dir)
	for n, c := range []struct {
		pod, signer string
		left        time.Duration
		unpublished string // the kind of its last line; empty if it was published
	}{
		{"renewed", "a", time.Hour, ""}, {"renewed", "a", 99 * time.Hour, ""},
		{"shortened", "a", 99 * time.Hour, ""}, {"shortened", "a", -time.Hour, ""},
		{"two", "b", time.Hour, ""}, {"two", "a", 99 * time.Hour, ""},
		{"", "a", 2 * time.Hour, ""},
		{"killed", "a", 150 * time.Minute, "unconfirmed"}, {"killed", "b", 160 * time.Minute, "signed"},
		{"killed and renewed", "a", time.Hour, "unconfirmed"}, {"killed and renewed", "a", 99 * time.Hour, ""},
		{"denied", "a", time.Hour, "orphaned"},
	} {
		intent, signed := ca.certify(t, j, strconv.Itoa(n), c.left)
		intent.Signer, intent.Requester.Username = c.signer, "admin"
		if c.pod != "" {
			intent.Name = "node-certs:" + c.pod
			intent.Requester = policy.Requester{Username: "system:serviceaccount:calico-system:calico-node", Groups: []string{"system:serviceaccounts", "system:serviceaccounts:calico-system"}, Extra: map[string][]string{
				"authentication.kubernetes.io/pod-name": {c.pod}, "authentication.kubernetes.io/pod-uid": {"uid-of-" + c.pod},
			}}
		}
		write(t, j, intent, signed)
		switch c.unpublished {
		case "":
			write(t, j, journal.Published{UID: intent.UID, Serial: intent.Serial})
		case "unconfirmed":
			write(t, j, journal.Unconfirmed{UID: intent.UID, Serial: intent.Serial, Why: "the request is gone"})
		case "orphaned":
			write(t, j, journal.Orphaned{UID: intent.UID, Serial: intent.Serial, Why: "the request was denied or has failed"})
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	out, stderr, code := command(t, "audit", "list", "--expiring", "3h", filepath.Join(dir, "state"))
	if code != 0 || strings.Count(stderr, "which pods still live is not known: no cluster is named: set KUBECONFIG") != 1 || strings.Contains(out, "estart") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	lines := strings.Split(out, "\n")
	for i, want := range []string{
		`^EXPIRES +STATE .* POD `, `ENDED .*calico-system/shortened \(not known whether it lives\)`, `ends .*calico-system/two \(not known`, `ends .*admin +not known  `,
		`ends .*calico-system/killed \(not known`, `ends .*calico-system/killed \(not known`, `^$`,
	} {
		if i >= len(lines) || !regexp.MustCompile(want).MatchString(lines[i]) {
			t.Errorf("line %d: want %s in:\n%s", i+1, want, out)
		}
	}
}

// The command for pods that are dark comes first, and once.
func TestRestartsOfWhatHasEndedComeFirst(t *testing.T) {
	var r restarts
	for _, view := range []issuedView{{}, {Ended: true, Pod: &podView{}}, {Ended: true, Pod: &podView{Restart: "a"}}, {Pod: &podView{Restart: "b"}}, {Pod: &podView{Restart: "a"}}, {Pod: &podView{Restart: "b"}}} {
		r.add(view)
	}
	var out bytes.Buffer
	if err := r.print(&out); err != nil || !regexp.MustCompile(`(?s)^\nPods live whose .* now:\n  a\n\nNothing renews .*:\n  b\n$`).MatchString(out.String()) {
		t.Errorf("%v: %s", err, &out)
	}
}

// What was given up is listed too, also where nobody knows whether it was signed.
func TestAuditListShowsOrphans(t *testing.T) {
	dir := t.TempDir()
	ca := newSoftCA(t)
	j := ca.openJournal(t, dir)
	ca.begin(t, j, "signed", true)
	ca.begin(t, j, "intended", false)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	out, stderr, code := command(t, "audit", "list", filepath.Join(dir, "state"))
	if code != 0 || strings.Count(out, "orphaned") != 2 || !strings.Contains(out, "typha-signed") || !strings.Contains(out, "typha-intended") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
}

// rechain changes lines of a journal, and computes numbers and hashes again, as whoever can write it can.
// change returns nil to leave a line out.
func rechain(t *testing.T, text []byte, change func(line []byte) []byte) (forged []byte) {
	t.Helper()
	seq, prev := 0, strings.Repeat("0", 64)
	begins := regexp.MustCompile(`^\{"seq":\d+,("time":"[^"]*"),"prev":"[^"]*"`)
	for line := range bytes.Lines(text) {
		if line = change(line); line == nil {
			continue
		}
		seq++
		line = begins.ReplaceAll(line, fmt.Appendf(nil, `{"seq":%d,$1,"prev":"%s"`, seq, prev))
		prev = fmt.Sprintf("%x", sha256.Sum256(line))
		forged = append(forged, line...)
	}
	return forged
}

// orphaned makes the publication of the request a line that says it was orphaned.
func orphaned(uid string) func(line []byte) []byte {
	return func(line []byte) []byte {
		if !bytes.Contains(line, []byte(`"kind":"published","uid":"`+uid)) {
			return line
		}
		line = bytes.Replace(line, []byte(`"published"`), []byte(`"orphaned"`), 1)
		return bytes.Replace(line, []byte("}\n"), []byte(`,"why":"the request is gone"}`+"\n"), 1)
	}
}

func withoutCheckpoints(line []byte) []byte {
	if bytes.Contains(line, []byte(`"kind":"checkpoint"`)) {
		return nil
	}
	return line
}

// manualBlocks are the parts of docs/verify-journal.sh, which blank lines separate.
func manualBlocks(t *testing.T) (blocks []string) {
	t.Helper()
	script, err := os.ReadFile("../../docs/verify-journal.sh")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(script), "\n\n")
}

// byHand runs the parts of docs/verify-journal.sh on the journal in DIR/state, with one more before the
// last.
func byHand(t *testing.T, dir, more string, env ...string) (string, error) {
	t.Helper()
	blocks := manualBlocks(t)
	if len(blocks) < 6 {
		t.Fatalf("%d blocks", len(blocks))
	}
	blocks = slices.Insert(blocks, len(blocks)-1, more)
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", strings.Join(blocks, "\n"))
	cmd.Dir = filepath.Join(dir, "state")
	cmd.Env = slices.Concat(os.Environ(), []string{"CA_CERT_FILE=" + filepath.Join(dir, "ca.crt")}, env)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// docs/verify-journal.sh finds nothing wrong with a journal that is right, and what is wrong
// with one that is not.
func TestAuditByHand(t *testing.T) {
	dir := madeJournal(t, time.Hour, time.Hour, time.Hour)
	out, err := byHand(t, dir, "")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, words := range []string{
		"10 lines, chain whole", "3 certificates signed by the CA", "3 intents say what", "nothing twice", "nothing vouches for the chain",
	} {
		if !strings.Contains(out, words) {
			t.Errorf("%q is missing in\n%s", words, out)
		}
	}
	head := regexp.MustCompile(`head (\d+:\w{64})`).FindStringSubmatch(out)[1]
	if out, err := byHand(t, dir, "is_there "+head+" && echo it is there"); err != nil || !strings.Contains(out, "it is there") {
		t.Errorf("a witness: %v\n%s", err, out)
	}
	if out, err := byHand(t, dir, "is_there 1"+head); err == nil || !strings.Contains(out, "is not in the journal") {
		t.Errorf("a witness of what is not there: %v\n%s", err, out)
	}
	path := filepath.Join(dir, "state", "journal-00000001.jsonl")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for words, changed := range map[string][]byte{
		"line 6": bytes.Replace(text, []byte("typha-b"), []byte("typha-x"), 1),
		"line 2: the names are not": rechain(t, text, func(line []byte) []byte {
			return bytes.Replace(line, []byte("CN=typha-server"), []byte("CN=typha-clients"), 1)
		}),
	} {
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := byHand(t, dir, ""); err == nil || !strings.Contains(out, words) {
			t.Errorf("want %q: %v\n%s", words, err, out)
		}
	}
}

// Every kind of name is compared by hand as "audit verify" compares it.
func TestNamesByHand(t *testing.T) {
	dir := t.TempDir()
	ca := newSoftCA(t)
	j := ca.openJournal(t, dir)
	serial, err := j.ID().NewSerial()
	if err != nil {
		t.Fatal(err)
	}
	cert := makeCertificate(t, &x509.Certificate{
		SerialNumber: serial, NotAfter: time.Now().Add(time.Hour), Subject: pkix.Name{Organization: []string{`A "B" é, \C`}, CommonName: "node", StreetAddress: []string{"1"}},
		DNSNames: []string{"a.example", "b"}, EmailAddresses: []string{"a@b.example"}, URIs: []*url.URL{{Scheme: "spiffe", Host: "a", Path: "/b"}},
		IPAddresses: []net.IP{{10, 0, 0, 1}, net.ParseIP("fd00::1"), net.ParseIP("::1"), net.ParseIP("fd00:1:2:3:4:5:6:ab"), net.ParseIP("fd00::")},
	}, ca.cert, ca.key.Public(), ca.key)
	text := journal.FormatSerial(serial)
	write(t, j, journal.Intent{UID: "a", Serial: text, TBS: cert.RawTBSCertificate, Names: []string{
		`STREET="1"`, `O="A \"B\" \u00e9, \\C"`, `CN="node"`, "DNS:a.example", "DNS:b", "IP:10.0.0.1", "IP:fd00::1", "IP:::1", "IP:fd00:1:2:3:4:5:6:ab", "IP:fd00::", "URI:spiffe://a/b", "email:a@b.example",
	}})
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := byHand(t, dir, ""); err != nil || !strings.Contains(out, "1 intents say what") {
		t.Errorf("%v\n%s", err, out)
	}
	t.Setenv("CA_CERT_FILE", filepath.Join(dir, "ca.crt"))
	if _, stderr, code := command(t, "audit", "verify", filepath.Join(dir, "state")); code != 0 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// Progress shows on a terminal alone, and only when it takes long.
func TestProgress(t *testing.T) {
	for _, c := range []struct {
		terminal bool
		began    time.Time
		shown    bool
	}{{true, time.Now(), false}, {false, time.Now().Add(-time.Minute), false}, {true, time.Now().Add(-time.Minute), true}} {
		var out bytes.Buffer
		progress, clear := showProgress(&out, c.terminal, c.began)
		progress(3<<20, 7<<20)
		clear()
		if got := strings.Contains(out.String(), "3 of 7 MiB") && strings.HasSuffix(out.String(), "\x1b[K"); got != c.shown || !c.shown && out.Len() > 0 {
			t.Errorf("%+v: %q", c, out.String())
		}
	}
}
