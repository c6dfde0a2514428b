package main

import (
	"bytes"
	"crypto/x509/pkix"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"k8s.io/klog/v2"

	"hsm-signer/cmd/hsm-signer/internal/trustedfile"
)

// Commands that need a token or an API server are tested with them, in the module
// "integration".

func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = execute(t.Context(), args, &out, &errs)
	return out.String(), errs.String(), code
}

func TestPolicyShow(t *testing.T) {
	for _, args := range [][]string{{"policy", "show"}, {"policy", "show", "calico"}} {
		if out, stderr, code := command(t, args...); code != 0 || !strings.Contains(out, "typha-server") {
			t.Errorf("%v: exit code %d: %s", args, code, stderr)
		}
	}
	if _, stderr, code := command(t, "policy", "show", "nonsense"); code != 4 || !strings.Contains(stderr, "calico-legacy") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestUnknownFlagIsConfiguration(t *testing.T) {
	if _, stderr, code := command(t, "run", "--signer-nmae", "x"); code != 4 || !strings.Contains(stderr, "run --help") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestUnknownCommandIsConfiguration(t *testing.T) {
	for _, args := range [][]string{{"foo"}, {"ca", "craete"}, {"policy", "shw"}, {"run", "extra"}, {"policy", "show", "a", "b"}} {
		if _, stderr, code := command(t, args...); code != 4 || !strings.Contains(stderr, "--help") {
			t.Errorf("%v: exit code %d: %s", args, code, stderr)
		}
	}
	if out, _, code := command(t, "ca"); code != 0 || !strings.Contains(out, "ceremony") {
		t.Errorf("ca alone: exit code %d: %s", code, out)
	}
}

func TestThereIsNoFlagForThePIN(t *testing.T) {
	if _, stderr, code := command(t, "run", "--pkcs11-pin", "1234"); code != 4 || !strings.Contains(stderr, "unknown flag") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestPINIsTakenOutOfTheEnvironment(t *testing.T) {
	t.Setenv("PKCS11_PIN", "1234")
	if pin, err := takePIN(); err != nil || string(pin) != "1234" {
		t.Errorf("the PIN was not read: %v", err)
	}
	if again, err := takePIN(); err != nil || again != "" {
		t.Errorf("the PIN is still there: %v", err)
	}
}

func TestVersion(t *testing.T) {
	if out, _, code := command(t, "version"); code != 0 || !strings.Contains(out, "FIPS 140-3: module ") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func TestVersionFlag(t *testing.T) {
	want, _, _ := command(t, "version")
	if out, stderr, code := command(t, "--version"); code != 0 || out != want {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	if _, _, code := command(t, "-v"); code != 4 {
		t.Errorf("-v: exit code %d", code)
	}
}

func TestSignerNames(t *testing.T) {
	for name, words := range map[string]string{
		"example.com/calico": "", "a.b/c.d": "", "a.b/c/d": "is not a signer name", "a.b/C d": "is not a signer name", "a.b/c=d": "is not a signer name", "calico": "is not a signer name", "com/calico": "is not a signer name",
		"example.com/": "is not a signer name", "kubernetes.io/x": "reserved", "a.kubernetes.io/x": "reserved", "tigera.io/operator-signer": "Calico operator",
	} {
		err := checkSignerName(name)
		if (err == nil) != (words == "") || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSubjects(t *testing.T) {
	name, err := parseSubject(`CN=Calico CA, O=Example\, Inc.,OU=PKI,C=CH`)
	if err != nil || name.CommonName != "Calico CA" || name.Organization[0] != "Example, Inc." || name.Country[0] != "CH" {
		t.Errorf("%+v %v", name, err)
	}
	name, err = parseSubject(" CN = Corp CA , O= Example\\, Inc. ,O=Zürich\n")
	want := pkix.Name{CommonName: "Corp CA", Organization: []string{"Example, Inc.", "Zürich"}}
	if err != nil || !reflect.DeepEqual(name, want) {
		t.Errorf("blanks are kept: %+v %v", name, err)
	}
	for bad, words := range map[string]string{
		"": "TYPE=VALUE", "O=x": "no common name", "CN": "TYPE=VALUE", "CN=": "TYPE=VALUE", "CN=a,": "TYPE=VALUE",
		"CN= ,O=x": "TYPE=VALUE", "CN=a,X=b": "not known", "CN=a,CN=b": "more than one",
		"CN=a\nb": "(U+000A)", "CN=a\x00b": "(U+0000)", "CN=a\u00a0": "(U+00A0)", "CN=\ufeffa": "(U+FEFF)",
		"CN=a\u202eb": "(U+202E)", "CN=a\u2028": "(U+2028)", "CN=a\xff": "UTF-8", "CN=a,C=CHE": "two letters",
		"CN=a,C=C1": "two letters", "CN=a,C=ÄÖ": "two letters",
	} {
		if _, err := parseSubject(bad); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want %q", bad, err, words)
		}
	}
	for kind, most := range map[string]int{"CN": 64, "O": 64, "OU": 64, "L": 128, "ST": 128} {
		for length, fits := range map[int]bool{most: true, most + 1: false} {
			text := kind + "=" + strings.Repeat("ü", length)
			if kind != "CN" {
				text += ",CN=x"
			}
			if _, err := parseSubject(text); (err == nil) != fits {
				t.Errorf("%s of %d characters: %v", kind, length, err)
			}
		}
	}
}

// What nobody can see is refused before the token counts a wrong PIN, wherever the PIN comes from.
func TestInvisibleCharactersInAPIN(t *testing.T) {
	for pin, words := range map[string]string{
		"1234": "", "a b": "", "pässwörd": "", "密码1234": "", "🔑4711": "",
		"\ufeff1234": "byte order mark (U+FEFF)", "1234\u200b": "U+200B", "12\u00a034": "U+00A0", "12\u202f34": "U+202F",
		"12\u00ad34": "U+00AD", "12\u200d34": "U+200D", "\u202e1234": "U+202E", "12\u206034": "U+2060", "1234\u3000": "U+3000",
		"1234\u2028": "U+2028", "12\ufe0f34": "U+FE0F", "12\u316434": "U+3164", "12\U000e006134": "U+E0061",
		"12\t34": "control character", "1234\x00": "control character", "12\u008534": "control character",
	} {
		file := filepath.Join(t.TempDir(), "pin")
		if err := os.WriteFile(file, []byte(pin+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := pinInFile(trustedfile.Rules{Limit: longestPIN, Anyone: true}, file)
		for _, err := range []error{checkPIN(pin), err} {
			if (err == nil) != (words == "") || err != nil && !strings.Contains(err.Error(), words) {
				t.Errorf("%+q: %v, want %q", pin, err, words)
			}
			if err != nil && strings.Contains(strings.ReplaceAll(err.Error(), file, ""), "12") {
				t.Errorf("%+q: the error shows the PIN: %v", pin, err)
			}
		}
	}
}

func TestUnknownVariablesAreWarnedOf(t *testing.T) {
	var log bytes.Buffer
	warnUnknown(hclog.New(&hclog.LoggerOptions{Output: &log}), []string{"PKCS11_MODUEL=x", "PKCS11_PIN=y", "CA_KEY_LABEL=z", "CA_KEY_LABLE=z", "HOME=/"})
	if text := log.String(); strings.Count(text, "WARN") != 2 || !strings.Contains(text, "nearest=PKCS11_MODULE") || !strings.Contains(text, "nearest=CA_KEY_LABEL") {
		t.Error(text)
	}
}

// What client-go writes through klog comes through the one logger.
func TestKlogComesThroughTheLogger(t *testing.T) {
	var log bytes.Buffer
	newLogger(&config{logLevel: hclog.Info, logFormat: "json"}, &log)
	t.Cleanup(klog.ClearLogger)
	klog.Background().Info("said by client-go", "reflector", "r")
	klog.Background().V(5).Info("whispered by client-go")
	if text := log.String(); !strings.Contains(text, `"@message":"said by client-go"`) || !strings.Contains(text, `"reflector":"r"`) || strings.Contains(text, "whispered") {
		t.Error(text)
	}
}

// What an error quotes of a file, or of a requester, commands no terminal.
func TestErrorsCommandNoTerminal(t *testing.T) {
	const text = "STATE_DIR: one\nlog: \x1b]0;all is well\a\r\u009b2K \u202e \"C:\\ü\""
	if got, want := harmless(text), "STATE_DIR: one\nlog: \\x1b]0;all is well\\a\\r\\u009b2K \\u202e \"C:\\ü\""; got != want {
		t.Errorf("%q; want %q", got, want)
	}
}
