package service

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/internal/must"
)

// common names the part of CONFIG_FILE that is no CA's.
const common = "common"

// A testFile is CONFIG_FILE: the settings of common and of each CA.
type testFile map[string]map[string]string

// text writes the file. A value that ends with a line is YAML, and is written below its key.
func (f testFile) text() string {
	var text strings.Builder
	section := func(indent, name string) {
		fmt.Fprintf(&text, "%s%s:\n", indent, name)
		for _, key := range slices.Sorted(maps.Keys(f[name])) {
			fmt.Fprintf(&text, "%s  %s: %s\n", indent, key, f[name][key])
		}
	}
	section("", common)
	fmt.Fprintln(&text, "cas:")
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if name != common {
			section("  ", name)
		}
	}
	return text.String()
}

// twoCAs is a complete file with the CAs "first" and "second".
func twoCAs(t *testing.T) testFile {
	t.Helper()
	f := testFile{common: {}}
	for _, name := range []string{"first", "second"} {
		f[name] = completeConfig(t)
		f[name]["SIGNER_NAME"] = "example.com/" + name
		f[common]["KUBECONFIG"], f[common]["STATE_DIR"] = f[name]["KUBECONFIG"], t.TempDir()
		delete(f[name], "KUBECONFIG")
		delete(f[name], "STATE_DIR")
	}
	return f
}

// loadFile loads what "run" would with the file, in an environment with these variables.
func loadFile(t *testing.T, text string, environment map[string]string) ([]*Service, []string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	must.OK(t, os.WriteFile(file, []byte(text), 0o600))
	for _, s := range allSettings {
		t.Setenv(s.Env, environment[s.Env])
	}
	t.Setenv(pin.Variable, environment[pin.Variable])
	t.Setenv("CONFIG_FILE", file)
	command := &cobra.Command{}
	config.AddFlags(command, allSettings)
	p, faults := config.ReadProcess(command, allSettings)
	return LoadAll(p, faults, nil), *faults
}

func TestEachCAHasItsOwnSettings(t *testing.T) {
	f := twoCAs(t)
	f[common]["WORKERS"], f["second"]["WORKERS"] = "7", "9"
	f[common]["LEADER_ELECT"], f[common]["LEASE_NAMESPACE"] = "true", "pki"
	f["second"]["LEASE_NAME"] = "mine"
	services, faults := loadFile(t, f.text(), map[string]string{"LISTEN_ADDRESS": "127.0.0.1:1234"})
	if len(faults) > 0 || len(services) != 2 {
		t.Fatalf("%d CAs: %q", len(services), faults)
	}
	first, second := services[0], services[1]
	for what, c := range map[string][2]string{
		"the name":      {first.Name, "first"},
		"its signer":    {second.SignerNames[0], "example.com/second"},
		"its default":   {fmt.Sprint(first.Workers), "7"},
		"its own":       {fmt.Sprint(second.Workers), "9"},
		"the directory": {first.StateDir, filepath.Join(f[common]["STATE_DIR"], "first")},
		"the lease":     {first.Lease.Name, "hsm-signer-first"},
		"its own lease": {second.Lease.Name, "mine"},
		"the address":   {second.ListenAddress, "127.0.0.1:1234"},
		"the URI's key": {second.Token.Key.Label, "ca"},
	} {
		if c[0] != c[1] {
			t.Errorf("%s is %q; want %q", what, c[0], c[1])
		}
	}
}

// Everything that is wrong is reported at once, and each mistake names its CA and its variable.
func TestMistakesInCONFIGFILE(t *testing.T) {
	for name, c := range map[string]struct {
		change      func(testFile)
		environment map[string]string
		want        []string
	}{
		"several": {change: func(f testFile) {
			f["first"]["WORKERS"], f["second"]["CA_CERT_FILE"] = "many", "/nowhere"
			delete(f["second"], "SIGNER_NAME")
		}, want: []string{`first: WORKERS: "many" is not`, "second: SIGNER_NAME: is not set",
			"second: CA_CERT_FILE: "}},
		"of all, once": {change: func(f testFile) { f[common]["WORKERS"] = "many" },
			want: []string{`common: WORKERS: "many" is not`}},
		"shared, once": {change: func(f testFile) { f[common]["KUBECONFIG"] = "/nowhere" },
			want: []string{"common: KUBECONFIG: "}},
		"an address": {change: func(f testFile) { f[common]["LISTEN_ADDRESS"] = "x" },
			want: []string{`common: LISTEN_ADDRESS: "x" is not`}},
		"one signer": {change: func(f testFile) {
			f["second"]["SIGNER_NAME"] = "example.com/x,example.com/first"
		}, want: []string{"second: SIGNER_NAME: has example.com/first, and so has that of first"}},
		"one directory": {change: func(f testFile) {
			f["second"]["STATE_DIR"] = f[common]["STATE_DIR"] + "/first/"
		}, want: []string{"second: STATE_DIR: is "}},
		"one witness": {change: func(f testFile) {
			f["first"]["WITNESS_FILE"], f["second"]["WITNESS_FILE"] = "/w/x", "/w/./x"
		}, want: []string{"second: WITNESS_FILE: is /w/x, and so is that of first"}},
		"one lease": {change: func(f testFile) {
			f[common]["LEADER_ELECT"], f[common]["LEASE_NAMESPACE"] = "true", "pki"
			f["first"]["LEASE_NAME"], f["second"]["LEASE_NAME"] = "x", "x"
		}, want: []string{"second: LEASE_NAME: is pki/x, and so is that of first"}},
		"nobody's requests": {change: func(f testFile) {
			f["first"]["UNSET_SIGNER_NAME"], f["second"]["UNSET_SIGNER_NAME"] = "accept", "accept"
			f["first"]["POLICY_FILE"], f["second"]["POLICY_FILE"] = "calico-legacy", "calico-legacy"
		}, want: []string{"second: UNSET_SIGNER_NAME: is accept, and so is that of first"}},
		"unknown": {change: func(f testFile) { f["first"]["SIGNER_NAMES"] = "x" }, want: []string{
			`first: there is no setting "SIGNER_NAMES"; the nearest is SIGNER_NAME`}},
		"misplaced": {change: func(f testFile) {
			f["first"]["LISTEN_ADDRESS"], f[common]["POLICY_FILE"] = ":8080", "calico"
		}, want: []string{"common: POLICY_FILE differs for each CA",
			"first: LISTEN_ADDRESS belongs to the whole process"}},
		"a PIN": {change: func(f testFile) { f["first"]["PKCS11_PIN"] = "1234" },
			want: []string{"first: this file holds no PIN"}},
		"a PIN in a URI": {change: func(f testFile) {
			f["first"] = maps.Clone(f["first"])
			f["first"]["PKCS11_URI"] = "pkcs11:token=ca?pin-value=1234"
			delete(f["first"], "PKCS11_TOKEN_LABEL")
			delete(f["first"], "PKCS11_PIN_FILE")
		}, want: []string{"first: PKCS11_URI: has a pin-value"}},
		"no PIN": {change: func(f testFile) { delete(f["first"], "PKCS11_PIN_FILE") },
			want: []string{"first: PKCS11_PIN_FILE: is not set, and PKCS11_URI has no pin-source"}},
		"no value": {change: func(f testFile) { f["first"]["WORKERS"] = "" },
			want: []string{"first: WORKERS needs a value"}},
		"no text": {change: func(f testFile) { f["first"]["WORKERS"] = "[1]" },
			want: []string{"first: WORKERS needs a value"}},
		"twice": {change: func(f testFile) { f["first"]["WORKERS"] = "1\n    WORKERS: 2" },
			want: []string{"first has the key WORKERS twice"}},
		"a name": {change: func(f testFile) { f["First"] = f["first"]; delete(f, "first") },
			want: []string{`"First" cannot be the name of a CA`}},
		"no CA": {change: func(f testFile) { delete(f, "first"); delete(f, "second") },
			want: []string{"cas is not a mapping"}},
		"outside, too": {change: func(testFile) {}, environment: map[string]string{
			"SIGNER_NAME": "example.com/x", "KUBECONFIG": "/x", pin.Variable: "1"}, want: []string{
			"KUBECONFIG: is set, and CONFIG_FILE sets the same",
			"SIGNER_NAME: is set outside CONFIG_FILE",
			"PKCS11_PIN: is set, and CONFIG_FILE too"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := twoCAs(t)
			c.change(f)
			_, faults := loadFile(t, f.text(), c.environment)
			if len(faults) != len(c.want) {
				t.Errorf("%d faults: %q", len(faults), faults)
			}
			for _, want := range c.want {
				if !slices.ContainsFunc(faults, func(fault string) bool {
					return strings.Contains(fault, want)
				}) {
					t.Errorf("%q is missing in %q", want, faults)
				}
			}
		})
	}
}
