package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"k8s.io/klog/v2"
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
	for _, bad := range []string{"", "O=x", "CN", "CN=", "CN=a,X=b", "CN=a,CN=b", "CN=a\nb"} {
		if _, err := parseSubject(bad); err == nil {
			t.Errorf("%q was taken", bad)
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
