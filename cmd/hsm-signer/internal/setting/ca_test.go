package setting

import (
	"slices"
	"testing"

	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/internal/must"
)

// A setting is the CA's own, or from common. A flag wins, and what the CAs share may be set
// outside.
func TestValuesOfACA(t *testing.T) {
	file := fixture.File(t, "config.yaml", twoCAs)
	command := &cobra.Command{}
	for _, variable := range append(testLayout.Known, FileVariable) {
		t.Setenv(variable, "")
		command.Flags().String(FlagName(variable), "", "")
	}
	AddCAFlag(command, true)
	t.Setenv(FileVariable, file)
	t.Setenv("ADDRESS", "own:1")
	must.OK(t, command.ParseFlags([]string{"--ca", "second", "--name", "flag"}))
	ca, found, faults := ReadCA(command, testLayout, testLayout.Known)
	if !found || len(*faults) > 0 || ca.Name != "second" {
		t.Fatalf("%t, %q: %q", found, ca.Name, *faults)
	}
	for variable, want := range map[string]string{"NAME": "flag", "DIRECTORY": "/second",
		"ADDRESS": "own:1"} {
		if value, own := ca.Value(variable); value != want || !own {
			t.Errorf("%s: %q, own %t; want %q", variable, value, own, want)
		}
	}

	t.Setenv("ADDRESS", "")
	p := ReadProcess(&cobra.Command{}, testLayout, testLayout.Known, faults)
	if len(*faults) > 0 || len(p.CAs) != 2 || p.Shared.Name != "" {
		t.Fatalf("%+v: %q", p, *faults)
	}
	for variable, want := range map[string]string{"NAME": "", "DIRECTORY": "/common",
		"ADDRESS": "a:1"} {
		if value, own := p.Shared.Value(variable); value != want || own {
			t.Errorf("%s: %q, own %t; want %q", variable, value, own, want)
		}
	}
}

// Each fault names the section that has the value, and one of all CAs is reported once.
func TestFaultsNameTheirSection(t *testing.T) {
	t.Setenv(FileVariable, fixture.File(t, "config.yaml", twoCAs))
	faults := &Faults{}
	for _, ca := range ReadProcess(&cobra.Command{}, testLayout, nil, faults).CAs {
		ca.Report(Faults{"NAME: x", "DIRECTORY: x", "ADDRESS: x"}, faults)
	}
	if want := (Faults{"first: NAME: x", "common: DIRECTORY: x", "common: ADDRESS: x",
		"second: NAME: x", "second: DIRECTORY: x"}); !slices.Equal(*faults, want) {
		t.Errorf("%q; want %q", *faults, want)
	}
}
