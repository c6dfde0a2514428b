package config

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
)

// twoCAs is a file with the CAs "first" and "second".
const twoCAs = `common:
  KUBECONFIG: /kubeconfig
  STATE_DIR: /var/lib/signers
  LISTEN_ADDRESS: 127.0.0.1:8080
  CLUSTER_DOMAIN: example.org
cas:
  first:
    SIGNER_NAME: example.com/first
  second:
    SIGNER_NAME: example.com/second
`

// Each list of settings has only settings.
func TestPlacesOfSettings(t *testing.T) {
	for _, variable := range slices.Concat(processWide, inherited) {
		if !slices.ContainsFunc(allSettings(), func(s Setting) bool { return s.Env == variable }) {
			t.Errorf("there is no setting %s", variable)
		}
	}
}

// A command about one CA reads the settings of that one. A flag wins.
func TestOneCAOfCONFIGFILE(t *testing.T) {
	file := fixture.File(t, "config.yaml", twoCAs)
	settings := Named("STATE_DIR", "CA_CERT_FILE", "SIGNER_NAME")
	read := func(environment string, flags ...string) (*Config, string) {
		for _, s := range settings {
			t.Setenv(s.Env, "")
		}
		t.Setenv("SIGNER_NAME", environment)
		command := &cobra.Command{}
		AddFlags(command, settings)
		AddCAFlags(command)
		must.OK(t, command.ParseFlags(flags))
		c, faults := Read(command, settings)
		return c, strings.Join(*faults, "; ")
	}
	c, faults := read("", "--config-file", file, "--ca", "second", "--ca-cert-file", "x")
	if faults != "" || c.SignerNames[0] != "example.com/second" || c.CACertFile != "x" ||
		c.StateDir != "/var/lib/signers/second" {
		t.Errorf("%+v: %s", c, faults)
	}
	if c, faults := read("example.com/x"); faults != "" || c.SignerNames[0] != "example.com/x" {
		t.Errorf("without the file: %+v: %s", c, faults)
	}
	for _, wrong := range []struct {
		environment, want string
		flags             []string
	}{
		{"", "name a CA of CONFIG_FILE: first, second", []string{"--config-file", file}},
		{"", `has no CA "x": it has first, second`, []string{"--config-file", file, "--ca", "x"}},
		{"", "--ca: names a CA of CONFIG_FILE, which is not set", []string{"--ca", "x"}},
		{"example.com/x", "SIGNER_NAME: is set outside CONFIG_FILE",
			[]string{"--config-file", file, "--ca", "first"}},
	} {
		if _, faults := read(wrong.environment, wrong.flags...); !strings.Contains(faults,
			wrong.want) {
			t.Errorf("%v: %q; want %q", wrong.flags, faults, wrong.want)
		}
	}
}

// A process that signs nothing reads what is said of its CA, and nothing that is said of
// their process.
func TestOneCAOfCONFIGFILEInAnotherProcess(t *testing.T) {
	file := fixture.File(t, "config.yaml", twoCAs)
	settings := Named("SIGNER_NAME", "CLUSTER_DOMAIN", "KUBECONFIG", "LISTEN_ADDRESS")
	for _, s := range settings {
		t.Setenv(s.Env, "")
	}
	t.Setenv("CONFIG_FILE", file)
	t.Setenv("KUBECONFIG", "/own")
	command := &cobra.Command{}
	AddFlags(command, settings)
	AddCAFlagsOfProcess(command)
	must.OK(t, command.ParseFlags([]string{"--ca", "second", "--listen-address", "127.0.0.1:1"}))
	c, faults := Read(command, settings)
	if len(*faults) > 0 || c.SignerNames[0] != "example.com/second" || c.Kubeconfig != "/own" ||
		c.ListenAddress != "127.0.0.1:1" || c.ClusterDomain != "example.org" {
		t.Errorf("%+v: %v", c, *faults)
	}
}
