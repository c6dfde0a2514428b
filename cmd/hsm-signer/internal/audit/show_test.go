package audit

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
	"hsm-signer/issuer/journal"
)

// shownJournal has one certificate in each state. Two requests have the name "again"; the request
// "twice" got another certificate after an orphan. It returns the intents by UID; that of the
// orphan is "orphan".
func shownJournal(t *testing.T) (state string, intents map[string]journal.Intent) {
	t.Helper()
	dir := t.TempDir()
	ca := fixture.NewCA(t)
	j := ca.OpenJournal(t, dir)
	intents = map[string]journal.Intent{}
	begin := func(uid, name string, anew bool) (journal.Intent, journal.Signed) {
		intent, signed := ca.Certify(t, j, uid, time.Hour)
		intent.Name, intent.Anew, intent.Signer = name, anew, "example.org/signer"
		intent.RequestSHA256, intent.Rule, intent.PolicyHash = "aa11", "typha", "bb22"
		intent.Requester.UID = "requester-uid"
		intent.Requester.Groups = []string{"system:authenticated", "a\nstate          forged"}
		intent.Requester.Extra = map[string][]string{"pod-name": {"typha\x1b]0;title\x07\u202e"}}
		fixture.Write(t, j, intent)
		intents[uid] = intent
		return intent, signed
	}
	i, signed := begin("uid-a", "again", false)
	fixture.Write(t, j, signed, journal.Published{UID: i.UID, Serial: i.Serial})
	_, _ = begin("uid-intended", "intended", false)
	i, signed = begin("uid-unconfirmed", "unconfirmed", false)
	fixture.Write(t, j, signed, journal.Rollback{HeadSeq: 99, HeadSHA256: journal.Hash{7}})
	fixture.Write(t, j, journal.Unconfirmed{UID: i.UID, Serial: i.Serial, Why: "why-unconfirmed"})
	i, _ = begin("uid-twice", "twice", false)
	fixture.Write(t, j, journal.Orphaned{UID: i.UID, Serial: i.Serial, Why: "why-orphaned"})
	intents["orphan"] = i
	_, signed = begin("uid-twice", "twice", true)
	fixture.Write(t, j, signed)
	i, signed = begin("uid-b", "again", false)
	fixture.Write(t, j, signed, journal.Published{UID: i.UID, Serial: i.Serial})
	must.OK(t, j.Close())
	return filepath.Join(dir, "state"), intents
}

// shown returns what "audit show" finds: of each certificate its UID, its state and its history.
func shown(t *testing.T, state, argument string) []string {
	t.Helper()
	out, stderr, code := command(t, "audit", "show", argument, state, "-o", "json")
	if code != 0 {
		t.Fatalf("%s: exit code %d: %s%s", argument, code, out, stderr)
	}
	var found []string
	for decoder := json.NewDecoder(strings.NewReader(out)); decoder.More(); {
		var view shownView
		must.OK(t, decoder.Decode(&view))
		words := []string{view.UID, view.State, "="}
		for _, e := range view.History {
			if e.Time.IsZero() || e.Seq == 0 {
				t.Errorf("%s: %+v", argument, e)
			}
			words = append(words, strings.TrimSpace(string(e.Kind)+" "+e.Why))
		}
		found = append(found, strings.Join(words, " "))
		if view.NotAfter.IsZero() || view.Names[0] != "CN=typha-server" || view.Rule != "typha" ||
			view.Requester.UID == "" {
			t.Errorf("%s: %+v", argument, view)
		}
	}
	return found
}

func TestAuditShow(t *testing.T) {
	state, intents := shownJournal(t)
	a := intents["uid-a"].Serial
	var colons []string
	for i := 0; i < len(a); i += 2 {
		colons = append(colons, a[i:i+2])
	}
	ofA, ofB := "uid-a published = intent signed published",
		"uid-b published = intent signed published"
	orphan, signed := "uid-twice orphaned = intent orphaned why-orphaned",
		"uid-twice signed = intent signed"
	for _, c := range []struct {
		argument string
		want     []string
	}{
		{"uid-a", []string{ofA}},
		{"again", []string{ofA, ofB}},
		{a, []string{ofA}},
		{strings.ToLower(a), []string{ofA}},
		{"serial=" + a, []string{ofA}},
		{strings.Join(colons, ":"), []string{ofA}},
		{strings.ToLower(strings.Join(colons, ":")), []string{ofA}},
		{"00:" + strings.Join(colons, ":"), []string{ofA}},
		{intents["orphan"].Serial, []string{orphan}},
		{intents["uid-twice"].Serial, []string{signed}},
		{"uid-twice", []string{orphan, signed}},
		{"intended", []string{"uid-intended intended = intent rollback"}},
		{"unconfirmed",
			[]string{"uid-unconfirmed unconfirmed = intent signed rollback unconfirmed " +
				"why-unconfirmed"}},
	} {
		if got := shown(t, state, c.argument); strings.Join(got, "\n") != strings.Join(c.want,
			"\n") {
			t.Errorf("%s: %q, want %q", c.argument, got, c.want)
		}
	}
}

// JSON is ASCII: what a requester wrote changes no terminal there either.
func TestAuditPrintsJSONInASCII(t *testing.T) {
	state, _ := shownJournal(t)
	for _, args := range [][]string{{"show", "uid-a", state}, {"list", state}} {
		out, stderr, code := command(t,
			append(append([]string{"audit"}, args...), "--output", "json")...)
		if code != 0 || !strings.Contains(out, `\u202e`) {
			t.Errorf("audit %s: exit code %d: %s%s", args[0], code, out, stderr)
		}
		if strings.ContainsFunc(out, func(r rune) bool { return r >= 0x7f }) {
			t.Errorf("audit %s is not ASCII: %q", args[0], out)
		}
	}
}

// The text has each field on a line of its own, whatever a requester writes, and the certificate.
func TestAuditShowText(t *testing.T) {
	state, intents := shownJournal(t)
	out, stderr, code := command(t, "audit", "show", "uid-a", state)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d: %s%s", code, out, stderr)
	}
	for _, line := range []string{
		"request         again", "UID             uid-a", "signer          example.org/signer",
		`requester       system:serviceaccount:calico-system:calico-typha\x1b[1m`,
		"requester UID   requester-uid",
		"group           system:authenticated", `group           a\nstate          forged`,
		`extra           pod-name=typha\x1b]0;title\a\u202e`,
		"rule            typha", "policy hash     bb22", "request SHA-256 aa11",
		"name            CN=typha-server",
		"serial          " +
			intents["uid-a"].Serial, "state           published: the API server has it",
	} {
		if strings.Count("\n"+out, "\n"+line+"\n") != 1 {
			t.Errorf("not once a line %q in:\n%s", line, out)
		}
	}
	block, _ := pem.Decode([]byte(out))
	if block == nil {
		t.Fatalf("no certificate:\n%s", out)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || journal.FormatSerial(cert.SerialNumber) != intents["uid-a"].Serial {
		t.Errorf("another certificate: %v", err)
	}
	out, _, _ = command(t, "audit", "show", "unconfirmed", state)
	if !strings.Contains(out, "\nrollback        ") || !strings.Contains(out, "99:07") ||
		!strings.Contains(out, "why-unconfirmed") {
		t.Errorf("no rollback, or no reason:\n%s", out)
	}
	out, _, _ = command(t, "audit", "show", "intended", state)
	if !strings.Contains(out, "\ncertificate     its signature is not in the journal\n") ||
		strings.Contains(out, "BEGIN") {
		t.Errorf("a certificate of a mere intent:\n%s", out)
	}
}

// Without a match the command says what it has searched and where to look, and fails.
func TestAuditShowWithoutAMatch(t *testing.T) {
	state, intents := shownJournal(t)
	serial := intents["uid-a"].Serial
	another := serial[:7] + map[bool]string{true: "1", false: "0"}[serial[7] == '0'] + serial[8:]
	unknown := serial[:39] + map[bool]string{true: "1", false: "0"}[serial[39] == '0']
	for argument, want := range map[string]string{
		"gone\x1b[2J": `show gone\x1b[2J: none of the 6 certificates in the journal in ` + state,
		unknown:       "none of the 6 certificates",
		another:       "another journal, " + strings.ToLower(another[:8]) + ", and this one is",
	} {
		out, stderr, code := command(t, "audit", "show", argument, state)
		if code != 1 || out != "" || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit code %d: %s%s", argument, code, out, stderr)
		}
	}
	for _, args := range [][]string{{""}, {"x", "--output", "yaml"}} {
		if _, stderr, code := command(t, append([]string{"audit", "show"}, args...)...); code != 4 {
			t.Errorf("%q: exit code %d: %s", args, code, stderr)
		}
	}
	if _, stderr, code := command(t, "audit", "show", "x",
		filepath.Join(state, "away")); code != 1 || stderr == "" {
		t.Errorf("no directory: exit code %d: %s", code, stderr)
	}
}
