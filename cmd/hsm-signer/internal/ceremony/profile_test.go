package ceremony

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/cli/clitest"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/hsm"
	"hsm-signer/internal/must"
	"hsm-signer/issuer"
)

// readProfileWith reads a profile as "ca create" does with these flags.
func readProfileWith(t *testing.T, text string, args ...string) (profile, issuer.CAProfile,
	*setting.Faults) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.yaml")
	must.OK(t, os.WriteFile(file, []byte(text), 0o600))
	var flags profileFlags
	command := &cobra.Command{}
	flags.add(command)
	if text != "" {
		args = append(args, "--profile", file)
	}
	must.OK(t, command.ParseFlags(args))
	faults := &setting.Faults{}
	p := flags.read(command, faults)
	return p, p.check(faults), faults
}

const wholeProfile = `
subject: CN=Calico CA,O=Example
keyType: ecdsa-p384
lifetime: 24h
pathLength: 1
nameConstraints:
  permitted:
    dnsDomains: [example.com, typha-server]
    ipRanges: [10.0.0.0/8, "fd00::/8"]
  excluded:
    dnsDomains: [a.example.com]
    ipRanges: [10.1.0.0/16]
`

func TestProfile(t *testing.T) {
	const constraints = "; permitted are DNS:example.com, DNS:typha-server, IP:10.0.0.0/8, " +
		"IP:fd00::/8; excluded are DNS:a.example.com, IP:10.1.0.0/16"
	for _, c := range []struct {
		text                       string
		args                       []string
		keyType, subject, restrict string
		lifetime                   time.Duration
	}{
		{wholeProfile, nil, "ecdsa-p384", "CN=Calico CA,O=Example", "CA:TRUE, path length 1" +
			constraints, 24 * time.Hour},
		{"", nil, "ecdsa-p256", "CN=hsm-signer CA", "CA:TRUE, path length 0", 87600 * time.Hour},
		{"keyType: rsa-4096\n", nil, "rsa-4096", "CN=hsm-signer CA", "CA:TRUE, path length 0",
			87600 * time.Hour},
		{
			wholeProfile, []string{"--key-type", "ed25519", "--subject", "CN=x", "--lifetime", "2h",
				"--path-length", "0", "--permit-dns", "b.example,c.example", "--exclude-ip="},
			"ed25519", "CN=x", "CA:TRUE, path length 0; permitted are DNS:b.example, " +
				"DNS:c.example, IP:10.0.0.0/8, IP:fd00::/8; excluded are DNS:a.example.com",
			2 * time.Hour,
		},
	} {
		p, made, faults := readProfileWith(t, c.text, c.args...)
		if err := faults.Err(); err != nil {
			t.Errorf("%v: %v", c.args, err)
		}
		if p.KeyType.value != c.keyType || made.Subject.String() != c.subject ||
			made.Lifetime != c.lifetime || made.Constraints.String() != c.restrict {
			t.Errorf("%v: %s, %s, %s, %s", c.args, p.KeyType.value, made.Subject, made.Lifetime,
				made.Constraints)
		}
	}
}

// Each mistake is named with its line, all at once.
func TestProfilesWithMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"subject: CN=a\nsubjekt: CN=b\n":                 `line 2: unknown key "subjekt"`,
		"nameConstraints:\n  permitted:\n    dns: [a]\n": `line 3: unknown key "dns"`,
		"lifetime: 10\n":                                 `line 1: "10" is not a duration`,
		"\nlifetime: 1m\n":                               "line 2: \"1m\" is not a duration of at least an hour",
		"pathLength: many\n":                             "line 1: cannot unmarshal",
		"pathLength: -1\n":                               "line 1: a path length of -1",
		"keyType: dsa\n":                                 `line 1: "dsa" is not known`,
		"subject: Example\n":                             "line 1: \"Example\" is not TYPE=VALUE",
		"subject:\n":                                     "line 1: the key has no value",
		"subject: CN=a\nsubject: CN=b\n":                 "line 2: mapping key \"subject\" already defined",
		"nameConstraints: {permitted: {dnsDomains: [.example.com]}}": `line 1: ".example.com" is not a DNS domain`,
		"nameConstraints: {permitted: {dnsDomains: ['*.a.b']}}":      `line 1: "*.a.b" is not a DNS domain`,
		"nameConstraints: {excluded: {ipRanges: [10.0.0.1/8]}}": "line 1: 10.0.0.1/8 has " +
			"bits set after its prefix: did you mean 10.0.0.0/8?",
		"nameConstraints: {excluded: {ipRanges: [10.0.0.1]}}":           `line 1: "10.0.0.1" is not a range`,
		"nameConstraints: {excluded: {ipRanges: ['::ffff:a00:0/104']}}": "is not a range",
		"# nothing\n":                         "is empty",
		"{":                                   "is not YAML",
		"subject: CN=a\n---\nsubject: CN=b\n": "more than one YAML document",
	} {
		_, _, faults := readProfileWith(t, text)
		if err := faults.Err(); err == nil || !strings.Contains(err.Error(), "--profile: ") ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
	if _, _, faults := readProfileWith(t, "keyType: dsa\npathLength: 77\n"); len(*faults) != 2 {
		t.Errorf("%q", *faults)
	}
}

// The transcript tells everything that two people can compare, whatever was done.
func TestTranscripts(t *testing.T) {
	done := ceremony{
		want: caRequest{out: "ca.crt"}, session: session{
			token: hsm.Token{Label: "the token", Serial: "4711", Model: "m", Manufacturer: "f",
				Firmware: "1.2"},
			pair: hsm.KeyPair{ID: hsm.KeyID{Label: "the key", ID: []byte{0xab}},
				Type: "ecdsa-p384", Uses: []hsm.Attribute{{Name: "CKA_DECRYPT", Is: true,
					Known: true}}},
			attributes: hsm.KeyAttributes{Attributes: []hsm.Attribute{{Name: "CKA_SENSITIVE",
				Want: true, Is: true, Known: true}, {Name: "CKA_LOCAL", Want: true}}},
		},
		facts: certificateFacts{SHA256: "fingerprint", PublicKey: "key's fingerprint",
			Subject: "CN=ca", Constraints: "CA:TRUE", Serial: "77"},
	}
	always := []string{
		"the token", "4711", "the key", "  id             ab\n", "ecdsa-p384",
		"CKA_SENSITIVE          1\n", "CKA_LOCAL              unknown to the token\n",
		"CKA_DECRYPT            1 (should be 0)\n", "fingerprint", "key's fingerprint", "CN=ca",
		"CA:TRUE", buildinfo.Version(), "Name ", "Signature ", "Date ",
	}
	for _, c := range []struct {
		request, existing bool
		also              []string
	}{
		{false, false,
			[]string{"The key was created in the token\n", "Its certificate, signed in the token\n",
				"serial number  77\n", "valid until"}},
		{true, true,
			[]string{"The key was already in the token; another tool created it\n",
				"The request for its certificate, signed in the token\n", "as requested"}},
	} {
		done.want.request, done.want.existingKey = c.request, c.existing
		text := string(done.transcribe())
		for _, want := range append(c.also, always...) {
			if !strings.Contains(text, want) {
				t.Errorf("%q is missing in:\n%s", want, text)
			}
		}
		if strings.Contains(text, "valid until") == c.request {
			t.Errorf("a request has no dates, and a certificate has:\n%s", text)
		}
	}
}

func TestFilesOfTheCeremonyAreLookedAtFirst(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	must.OK(t, os.WriteFile(there, nil, 0o600))
	for want, args := range map[string][]string{
		"--out: " + there + " already exists":        {"create", "--out", there},
		"--transcript: " + there + " already exists": {"create", "--transcript", there},
		"--transcript: is the same file as --out": {"create", "--transcript",
			filepath.Join(dir, "x"), "--out", filepath.Join(dir, "x")},
		"--out: there is no directory": {"create", "--out",
			filepath.Join(dir, "none", "x")},
		"--lifetime: does not apply to a request":           {"create", "--csr", "--lifetime", "1h"},
		"--profile: open /nowhere":                          {"create", "--profile", "/nowhere"},
		"--cert: is not set":                                {"import"},
		"--cert: open /nowhere":                             {"import", "--cert", "/nowhere"},
		there + ": there is no certificate":                 {"import", "--cert", there},
		"--cert: is not set: name the file with the next":   {"cross-sign"},
		"--out: " + there + " already exists; nothing":      {"cross-sign", "--out", there},
		"CA_CERT_FILE: is not set":                          {"show"},
		`--output: "xml" is not one of text, json and yaml`: {"show", "--output", "xml"},
	} {
		if _, stderr, code := command(t, append([]string{"ca"}, args...)...); code != 4 ||
			!strings.Contains(stderr, want) {
			t.Errorf("%v: exit code %d: %s; want %q", args, code, stderr, want)
		}
	}
}

// Wherever a duration can be given, days and weeks can be.
func TestLifetimeTakesWeeks(t *testing.T) {
	wrong := &setting.Faults{}
	p := profile{
		Subject: said[string]{value: "CN=x"}, KeyType: said[string]{value: defaultKeyType},
		Lifetime: said[string]{value: "520w"},
	}
	if made := p.check(wrong); made.Lifetime != 87360*time.Hour || len(*wrong) > 0 {
		t.Errorf("--lifetime: %v, %q", made.Lifetime, *wrong)
	}
}

func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return clitest.Run(t, NewCommand(), args...)
}
