package audit

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/cli/clitest"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
	"hsm-signer/issuer/journal"
	"hsm-signer/policy"
)

func TestAuditVerify(t *testing.T) {
	dir := fixture.Journal(t, time.Hour, time.Hour)
	t.Setenv("CA_CERT_FILE", filepath.Join(dir, "ca.crt"))
	t.Setenv("STATE_DIR", filepath.Join(dir, "state"))
	out, stderr, code := command(t, "audit", "verify")
	if code != 0 || !strings.Contains(out, "2 are published") ||
		!strings.Contains(out, "nothing vouches for the chain") || stderr != "" {
		t.Fatalf("exit code %d: %s %s", code, out, stderr)
	}
	head := regexp.MustCompile(`head +(\S+)`).FindStringSubmatch(out)[1]
	out, _, code = command(t, "audit", "verify", "--output", "json", "--witness", head)
	var summary journal.Summary
	if err := json.Unmarshal([]byte(out), &summary); err != nil || code != 0 ||
		summary.Head.String() != head {
		t.Errorf("exit code %d: %s: %v", code, out, err)
	}
	copied := filepath.Join(t.TempDir(), "journal-00000001.jsonl")
	text, err := os.ReadFile(filepath.Join(dir, "state", "journal-00000001.jsonl"))
	must.OK(t, err)
	last := bytes.LastIndexByte(text[:len(text)-1], '\n') + 1
	for name, c := range map[string]struct {
		text  []byte
		words string
	}{
		"renamed, with another chain": {
			fixture.Rechain(t, text, func(line []byte) []byte {
				return bytes.Replace(line, []byte("CN=typha-server"), []byte("CN=typha-clients"), 1)
			}), "line 2: the names are",
		},
		"changed": {bytes.Replace(text, []byte("typha-b"), []byte("typha-c"), 1),
			"journal-00000001.jsonl, line 5: its hash is"},
		"cut off": {text[:last], "journal-00000001.jsonl, line 7: the journal ends with line 6"},
		"cut within": {text[:last+20],
			"the journal ends with line 6, but a witness has seen line 7"},
		"unending": {append(text[:len(text):len(text)], "{"...),
			"1 bytes that are no whole line"},
		"empty": {nil, "this is no journal"},
	} {
		must.OK(t, os.WriteFile(copied, c.text, 0o600))
		args := []string{"audit", "verify", filepath.Dir(copied)}
		if !strings.HasPrefix(name, "renamed") { // which shows without any witness
			args = append(args, "--witness", head)
		}
		if _, stderr, code := command(t, args...); code != 2 || !strings.Contains(stderr, c.words) {
			t.Errorf("%s: exit code %d: %s", name, code, stderr)
		}
	}
	t.Setenv("CA_CERT_FILE", filepath.Join(fixture.Journal(t), "ca.crt"))
	if _, stderr, code := command(t, "audit", "verify"); code != 2 ||
		!strings.Contains(stderr, "line 3: the certificate") {
		t.Errorf("another CA: exit code %d: %s", code, stderr)
	}
	if _, stderr, code := command(t, "audit", "verify", "--former-ca",
		filepath.Join(dir, "ca.crt")); code != 0 {
		t.Errorf("a former CA: exit code %d: %s", code, stderr)
	}
	if _, stderr, code := command(t, "audit", "verify", "--witness", "x", "--checkpoint-key",
		"none", "--max-unvouched", "x", "-o", "x"); code != 4 ||
		strings.Count(stderr, "\n  --") != 4 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if _, _, code := command(t, "audit", "verify", filepath.Join(dir, "nowhere")); code != 1 {
		t.Errorf("no directory: exit code %d", code)
	}
}

func TestAuditList(t *testing.T) {
	dir := fixture.Journal(t, time.Hour, 48*time.Hour, -time.Hour)
	t.Setenv("STATE_DIR", filepath.Join(dir, "state"))
	for want, args := range map[string][]string{
		"abc": nil, "ca": {"--expiring", "1d"}, "cab": {"--expiring", "72h"}, "c": {"--expiring",
			"1m"},
	} {
		out, stderr, code := command(t, append([]string{"audit", "list", "-o", "json"}, args...)...)
		got := ""
		for decoder := json.NewDecoder(strings.NewReader(out)); decoder.More(); {
			var view issuedView
			must.OK(t, decoder.Decode(&view))
			got += view.UID
			if cert, err := x509.ParseCertificate(view.Certificate); err != nil ||
				journal.FormatSerial(cert.SerialNumber) != view.Serial ||
				view.State != "published" {
				t.Errorf("%+v: %v", view, err)
			}
		}
		if got != want || code != 0 {
			t.Errorf("%v: %q, not %q; exit code %d: %s", args, got, want, code, stderr)
		}
	}
	out, _, code := command(t, "audit", "list")
	if code != 0 || strings.Count(out, "\n") != 4 ||
		!strings.Contains(out, `calico-typha\x1b[1m`) || !strings.Contains(out, "CN=typha-server") {
		t.Errorf("exit code %d: %s", code, out)
	}
	for _, bad := range []string{"30", "-3d", "0h", "d", "x"} {
		if _, stderr, code := command(t, "audit", "list", "--expiring", bad); code != 4 ||
			!strings.Contains(stderr, "30d") {
			t.Errorf("%s: exit code %d: %s", bad, code, stderr)
		}
	}
}

// Of what a pod got for a signer and a name only the newest counts, whichever ends first; and
// without a cluster it is said that nobody knows which pods live.
func TestAuditListExpiringCountsTheNewest(t *testing.T) {
	dir := t.TempDir()
	ca := fixture.NewCA(t)
	j := ca.OpenJournal(t, dir)
	for n, c := range []struct {
		pod, signer string
		left        time.Duration
		unpublished string // the kind of its last line; empty if it was published
	}{
		{"renewed", "a", time.Hour, ""}, {"renewed", "a", 99 * time.Hour, ""},
		{"shortened", "a", 99 * time.Hour, ""}, {"shortened", "a", -time.Hour, ""},
		{"two", "b", time.Hour, ""}, {"two", "a", 99 * time.Hour, ""},
		{"", "a", 2 * time.Hour, ""},
		{"killed", "a", 150 * time.Minute, "unconfirmed"}, {"killed", "b", 160 * time.Minute,
			"signed"},
		{"killed and renewed", "a", time.Hour, "unconfirmed"}, {"killed and renewed", "a",
			99 * time.Hour, ""},
		{"denied", "a", time.Hour, "orphaned"},
	} {
		intent, signed := ca.Certify(t, j, strconv.Itoa(n), c.left)
		intent.Signer, intent.Requester.Username = c.signer, "admin"
		if c.pod != "" {
			intent.Name = "node-certs:" + c.pod
			intent.Requester =
				policy.Requester{Username: "system:serviceaccount:calico-system:calico-node",
					Groups: []string{"system:serviceaccounts",
						"system:serviceaccounts:calico-system"}, Extra: map[string][]string{
						"authentication.kubernetes.io/pod-name": {c.pod},
						"authentication.kubernetes.io/pod-uid":  {"uid-of-" + c.pod},
					}}
		}
		fixture.Write(t, j, intent, signed)
		switch c.unpublished {
		case "":
			fixture.Write(t, j, journal.Published{UID: intent.UID, Serial: intent.Serial})
		case "unconfirmed":
			fixture.Write(t, j,
				journal.Unconfirmed{UID: intent.UID, Serial: intent.Serial,
					Why: "the request is gone"})
		case "orphaned":
			fixture.Write(t, j,
				journal.Orphaned{UID: intent.UID, Serial: intent.Serial,
					Why: "the request was denied or has failed"})
		}
	}
	must.OK(t, j.Close())
	out, stderr, code := command(t, "audit", "list", "--expiring", "3h",
		filepath.Join(dir, "state"))
	if code != 0 ||
		strings.Count(stderr,
			"it is not known which pods still live: no cluster is named: set KUBECONFIG") != 1 ||
		strings.Contains(out, "estart") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	lines := strings.Split(out, "\n")
	for i, want := range []string{
		`^EXPIRES +STATE .* POD `, `ENDED .*calico-system/shortened \(unknown whether it lives\)`,
		`ends .*calico-system/two \(unknown`, `ends .*admin +unknown  `,
		`ends .*calico-system/killed \(unknown`, `ends .*calico-system/killed \(unknown`, `^$`,
	} {
		if i >= len(lines) || !regexp.MustCompile(want).MatchString(lines[i]) {
			t.Errorf("line %d: want %s in:\n%s", i+1, want, out)
		}
	}
}

// The command for pods that are dark comes first, and once.
func TestRestartsOfWhatHasEndedComeFirst(t *testing.T) {
	var r restarts
	for _, view := range []issuedView{{}, {Ended: true, Pod: &podView{}},
		{Ended: true,
			Pod: &podView{Restart: "a"}}, {Pod: &podView{Restart: "b"}},
		{Pod: &podView{Restart: "a"}}, {Pod: &podView{Restart: "b"}}} {
		r.add(view)
	}
	var out bytes.Buffer
	if err := r.print(&out); err != nil ||
		!regexp.MustCompile(
			`(?s)^\nThe certificates of these pods have expired.* now:\n  a\n\n`+
				`Nothing renews .*:\n  b\n$`).MatchString(out.String()) {
		t.Errorf("%v: %s", err, &out)
	}
}

// What was given up is listed too, also where nobody knows whether it was signed.
func TestAuditListShowsOrphans(t *testing.T) {
	dir := t.TempDir()
	ca := fixture.NewCA(t)
	j := ca.OpenJournal(t, dir)
	ca.Begin(t, j, "signed", true)
	ca.Begin(t, j, "intended", false)
	must.OK(t, j.Close())
	out, stderr, code := command(t, "audit", "list", filepath.Join(dir, "state"))
	if code != 0 || strings.Count(out, "orphaned") != 2 || !strings.Contains(out, "typha-signed") ||
		!strings.Contains(out, "typha-intended") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
}

// docs/verify-journal.sh finds nothing wrong with a journal that is right, and what is wrong
// with one that is not.
func TestAuditByHand(t *testing.T) {
	dir := fixture.Journal(t, time.Hour, time.Hour, time.Hour)
	out, err := fixture.VerifyByHand(t, dir, "")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, words := range []string{
		"10 lines, chain whole", "3 certificates signed by the CA", "3 intents say what",
		"nothing twice", "nothing vouches for the chain",
	} {
		if !strings.Contains(out, words) {
			t.Errorf("%q is missing in\n%s", words, out)
		}
	}
	head := regexp.MustCompile(`head (\d+:\w{64})`).FindStringSubmatch(out)[1]
	if out, err := fixture.VerifyByHand(t, dir,
		"is_there "+head+" && echo it is there"); err != nil ||
		!strings.Contains(out, "it is there") {
		t.Errorf("a witness: %v\n%s", err, out)
	}
	if out, err := fixture.VerifyByHand(t, dir, "is_there 1"+head); err == nil ||
		!strings.Contains(out, "is not in the journal") {
		t.Errorf("a witness of what is not there: %v\n%s", err, out)
	}
	path := filepath.Join(dir, "state", "journal-00000001.jsonl")
	text, err := os.ReadFile(path)
	must.OK(t, err)
	for words, changed := range map[string][]byte{
		"line 6": bytes.Replace(text, []byte("typha-b"), []byte("typha-x"), 1),
		"line 2: the names are not": fixture.Rechain(t, text, func(line []byte) []byte {
			return bytes.Replace(line, []byte("CN=typha-server"), []byte("CN=typha-clients"), 1)
		}),
	} {
		must.OK(t, os.WriteFile(path, changed, 0o600))
		if out, err := fixture.VerifyByHand(t, dir, ""); err == nil ||
			!strings.Contains(out, words) {
			t.Errorf("want %q: %v\n%s", words, err, out)
		}
	}
}

// Every kind of name is compared by hand as "audit verify" compares it.
func TestNamesByHand(t *testing.T) {
	dir := t.TempDir()
	ca := fixture.NewCA(t)
	j := ca.OpenJournal(t, dir)
	serial, err := j.ID().NewSerial()
	must.OK(t, err)
	cert := fixture.Certify(t, &x509.Certificate{
		SerialNumber: serial, NotAfter: time.Now().Add(time.Hour),
		Subject: pkix.Name{Organization: []string{`A "B" é, \C`}, CommonName: "node",
			StreetAddress: []string{"1"}},
		DNSNames: []string{"a.example",
			"b"}, EmailAddresses: []string{"a@b.example"}, URIs: []*url.URL{{Scheme: "spiffe",
			Host: "a", Path: "/b"}},
		IPAddresses: []net.IP{{10, 0, 0, 1}, net.ParseIP("fd00::1"), net.ParseIP("::1"),
			net.ParseIP("fd00:1:2:3:4:5:6:ab"), net.ParseIP("fd00::")},
	}, ca.Certificate, ca.Key.Public(), ca.Key)
	text := journal.FormatSerial(serial)
	fixture.Write(t, j,
		journal.Intent{UID: "a", Serial: text, TBS: cert.RawTBSCertificate, Names: []string{
			`STREET="1"`, `O="A \"B\" \u00e9, \\C"`, `CN="node"`, "DNS:a.example", "DNS:b",
			"IP:10.0.0.1", "IP:fd00::1", "IP:::1", "IP:fd00:1:2:3:4:5:6:ab", "IP:fd00::",
			"URI:spiffe://a/b", "email:a@b.example",
		}})
	must.OK(t, j.Close())
	if out, err := fixture.VerifyByHand(t, dir, ""); err != nil ||
		!strings.Contains(out, "1 intents say what") {
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
	}{{true, time.Now(), false}, {false, time.Now().Add(-time.Minute), false}, {true,
		time.Now().Add(-time.Minute), true}} {
		var out bytes.Buffer
		progress, clear := showProgress(&out, c.terminal, c.began)
		progress(3<<20, 7<<20)
		clear()
		if got := strings.Contains(out.String(), "3 of 7 MiB") &&
			strings.HasSuffix(out.String(), "\x1b[K"); got != c.shown || !c.shown && out.Len() > 0 {
			t.Errorf("%+v: %q", c, out.String())
		}
	}
}

// Wherever a duration can be given, days and weeks can be.
func TestExpiringTakesDaysAndWeeks(t *testing.T) {
	for _, text := range []string{"soon", "30d", "2w", "1w2d12h", "12h"} {
		if _, err := termOf(text); err != nil {
			t.Errorf("--expiring: %v", err)
		}
	}
}

func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return clitest.Run(t, NewCommand(), args...)
}
